// expand_'s product by AMX: tokens in the rows of the sums, columns of y in theirs. A token whose h has a subnormal
// number, or whose client's b has one, is worked on in float32, as in expand_dot.h. Include contract.h first.
#pragma once

#include "amx.h"
#include "expand_dot.h"
#include "rank_words.h"

#ifdef FFALORA_AMX

namespace ffalora {

// A chunk whose words have a multiple of 16 rows; tiles are [⌈tokens/16⌉, ⌈rank/32⌉] of 16 tokens by 32 ranks of h.
struct AmxExpand {
  static ptrdiff_t steps(ptrdiff_t rank) { return rank_blocks(rank, kTileInner); }

  static void fill_tiles(const ExpandDotChunk& c, bf16* tiles) {
    for (ptrdiff_t m = 0; m < c.tokens; m += kTileRows)
      for (ptrdiff_t r = 0; r < c.rank; r += kTileInner, tiles += kTileNumbers) {
        const ptrdiff_t ranks = c.rank - r < kTileInner ? c.rank - r : kTileInner;
        std::memset(tiles, 0, kTileNumbers * sizeof(bf16));
        for (ptrdiff_t i = 0; i < kTileRows && m + i < c.tokens; ++i)
          std::memcpy(tiles + i * kTileInner, c.h + (m + i) * c.h_stride + r, ranks * sizeof(bf16));
      }
  }

  template <int>
  FFALORA_INLINE static void run(const ExpandDotChunk* chunk, const bf16* tiles) {
    const ExpandDotChunk& c = *chunk;
    for (ptrdiff_t m = 0; m < c.tokens; m += kTileRows, tiles += steps(c.rank) * kTileNumbers) {
      const ptrdiff_t rows = c.tokens - m < kTileRows ? c.tokens - m : kTileRows;
      bool exact[kTileRows];
      for (ptrdiff_t i = 0; i < rows; ++i) exact[i] = c.needs_float(m + i);
      for (ptrdiff_t n = 0; n < c.width; n += 32) {
        alignas(64) float sums[2 * kTileSums];
        add(c, tiles, n, sums);
        for (ptrdiff_t i = 0; i < rows; ++i)
          if (!exact[i]) c.add(m + i, n, load<16>(sums + i * kTileRows), load<16>(sums + kTileSums + i * kTileRows));
      }
      for (ptrdiff_t i = 0; i < rows; ++i)
        if (exact[i]) c.add_in_float(m + i);
    }
  }

 private:
  // The even, then the odd ones of columns n … n+31.
  FFALORA_INLINE static void add(const ExpandDotChunk& c, const bf16* tiles, ptrdiff_t n, float* sums) {
    const ptrdiff_t stride = ExpandWords::stride(c.width);
    const uint32_t* words = c.words + n;
    zero_tile<0>();
    zero_tile<1>();
    for (ptrdiff_t k = 0; k < steps(c.rank); ++k, tiles += kTileNumbers, words += kTileRows * stride) {
      load_tile<4>(tiles, kTileBytes);
      load_tile<5>(words, stride * sizeof(uint32_t));
      load_tile<6>(words + 16, stride * sizeof(uint32_t));
      dot<0, 4, 5>();
      dot<1, 4, 6>();
    }
    store_tile<0>(sums, kTileBytes);
    store_tile<1>(sums + kTileSums, kTileBytes);
  }
};

}  // namespace ffalora

#endif
