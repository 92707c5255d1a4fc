// Included first by the files that want fused multiply-add; the build turns contraction off everywhere else, so that
// noise has the same bits on every processor.
#pragma once

#if defined(__clang__)
#pragma clang fp contract(fast)
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=fast")
#endif
