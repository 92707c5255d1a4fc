// Normals from ChaCha20 keyed by the operating system.
#pragma once

#include <cstddef>
#include <cstdint>

#include "chacha20.h"

namespace ffalora {

// Adds std · z to `count` numbers, z secure normals from a key that the operating system draws for this call and that
// is wiped before it returns. Throws std::system_error where the system gives no entropy.
void add_secure_normals(double* numbers, ptrdiff_t count, double std, int threads);

// Numbers 2·block … of the stream of a given key (block = ChaCha20 counter), for tests.
void add_normals_of_key(const ChaChaKey& key, uint32_t block, double* numbers, ptrdiff_t count, double std,
                        int threads);

// Words [blocks, 16] of the key stream, for tests.
void key_stream(const ChaChaKey& key, uint32_t block, ptrdiff_t blocks, uint32_t* words);

}  // namespace ffalora
