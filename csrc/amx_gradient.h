// backward and outer by AMX: g with ranks in the rows of the sums and columns of dy in theirs; dh with tokens in the
// rows and ranks in the columns. Include contract.h first.
#pragma once

#include "amx.h"
#include "kernels.h"
#include "rank_input.h"

#ifdef FFALORA_AMX

namespace ffalora {

// Tokens first … last-1 of a narrow operand turned around: tiles [⌈tokens/32⌉, ⌈ranks/16⌉] of 16 ranks by 32 tokens.
// Zeros stand for tokens beyond the last and ranks beyond the rank. No data: one column of ones.
inline void turn_to_tiles(const Activations& narrow, ptrdiff_t first, ptrdiff_t last, bf16* to) {
  constexpr bf16 kOne{0x3f80};
  const ptrdiff_t blocks = rank_blocks(narrow.columns, kTileRows);
  for (ptrdiff_t at = first; at < last; at += kTileInner, to += blocks * kTileNumbers) {
    std::memset(to, 0, blocks * kTileNumbers * sizeof(bf16));
    for (ptrdiff_t m = at; m < last && m < at + kTileInner; ++m) {
      const bf16* row = narrow.data == nullptr ? &kOne : narrow.row<bf16>(m);
      for (ptrdiff_t r = 0; r < narrow.columns; ++r) to[r * kTileInner + m - at] = row[r];
    }
  }
}

// Rows and columns of 16 × 16 numbers exchanged: four times, every vector is woven with the one eight further on.
FFALORA_INLINE void transpose(Vec<float, 16> (&v)[16]) {
  constexpr Vec<int32_t, 16> kLow{0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23};
  for (int turn = 0; turn < 4; ++turn) {
    Vec<float, 16> woven[16];
    for (int i = 0; i < 8; ++i) {
      woven[2 * i] = __builtin_shuffle(v[i], v[i + 8], kLow);
      woven[2 * i + 1] = __builtin_shuffle(v[i], v[i + 8], kLow + 8);
    }
    std::memcpy(v, woven, sizeof(woven));
  }
}

// As Gradient of tile.h; the chunk's narrow holds turn_to_tiles. RANK_ROWS: the target is [width, rank].
template <bool RANK_ROWS>
struct AmxGradient {
  template <int L>
  FFALORA_INLINE static void run(const GradientChunk<bf16>* chunk) {
    const GradientChunk<bf16>& c = *chunk;
    alignas(64) bf16 packed[kPanel / 32 * kPackedNumbers];
    Vec<double, 16> square{};
    float* partial = c.partial;
    for (ptrdiff_t n = 0; n < c.width; n += kPanel) {
      const ptrdiff_t columns = c.width - n < kPanel ? c.width - n : kPanel;
      for (ptrdiff_t j = 0; j < columns; j += 32)
        pack<L>(c, n + j, columns - j < 32 ? columns - j : 32, packed + j / 32 * kPackedNumbers);
      if (c.last && RANK_ROWS) prefetch_target(c, n, columns);
      for (ptrdiff_t r = 0; r < c.rank; r += kTileRows, partial += kTiles * kTileSums) {
        if (c.last && !RANK_ROWS) prefetch_rows(c, n, columns, r, c.rank - r < kTileRows ? c.rank - r : kTileRows);
        alignas(64) float sums[kTiles * kTileSums];
        columns > 32 ? add<kTiles>(c, packed, r, partial, sums) : add<kTiles / 2>(c, packed, r, partial, sums);
        for (ptrdiff_t j = 0; c.last && j < columns; j += kTileRows)
          finish(c, sums + j * kTileRows, n + j, columns - j < kTileRows ? columns - j : kTileRows, r, square);
      }
    }
    if (!c.last) return;
    double total = 0;
    for (int i = 0; i < 16; ++i) total += square[i];
    *c.square = total;
  }

 private:
  static constexpr int kTiles = 4;  // of sums, enough to hide how long a product takes
  static constexpr ptrdiff_t kPanel = kTiles * kTileRows, kPackedNumbers = kChunkTokens * 32;

  // Pairs of tokens as DotProducts packs them, and zeros up to a whole tile.
  template <int L>
  FFALORA_INLINE static void pack(const GradientChunk<bf16>& c, ptrdiff_t n, ptrdiff_t columns, bf16* packed) {
    DotProducts::pack<L>(c, n, columns, packed);
    const ptrdiff_t there = padded_to(c.tokens, 2), wanted = padded_to(c.tokens, kTileInner);
    std::memset(packed + there * 32, 0, (wanted - there) * 32 * sizeof(bf16));
  }

  // The products of a panel and a block of ranks, after those of the chunks before; into `sums` where none follow.
  template <int TILES>
  FFALORA_INLINE static void add(const GradientChunk<bf16>& c, const bf16* packed, ptrdiff_t r, float* partial,
                                 float* sums) {
    const ptrdiff_t blocks = rank_blocks(c.rank, kTileRows);
    const auto* narrow = reinterpret_cast<const bf16*>(c.narrow) + r / kTileRows * kTileNumbers;
    for_tiles<TILES>([&](auto t) __attribute__((always_inline)) {
      c.first ? zero_tile<t>() : load_tile<t>(partial + t * kTileSums, kTileBytes);
    });
    for (ptrdiff_t m = 0; m < c.tokens; m += kTileInner, narrow += blocks * kTileNumbers) {
      load_tile<4>(narrow, kTileBytes);
      for_tiles<TILES>([&](auto t) __attribute__((always_inline)) {
        constexpr int kWide = 5 + t % 3;
        load_tile<kWide>(packed + t / 2 * kPackedNumbers + m * 32 + t % 2 * 32, 2 * kTileBytes);
        dot<t, 4, kWide>();
      });
    }
    float* to = c.last ? sums : partial;
    for_tiles<TILES>([&](auto t) __attribute__((always_inline)) { store_tile<t>(to + t * kTileSums, kTileBytes); });
  }

  // sums [16 ranks from r on, 16 columns from n on], of which `columns` are real.
  FFALORA_INLINE static void finish(const GradientChunk<bf16>& c, const float* sums, ptrdiff_t n, ptrdiff_t columns,
                                    ptrdiff_t r, Vec<double, 16>& square) {
    const ptrdiff_t ranks = c.rank - r < kTileRows ? c.rank - r : kTileRows;
    if constexpr (!RANK_ROWS) {
      float* target = c.target + n + r * c.rank_stride;
      for (ptrdiff_t i = 0; i < ranks; ++i, target += c.rank_stride)
        emit<16>(c, load<16>(sums + i * kTileRows), target, columns, square);
      return;
    }
    Vec<float, 16> rows[16];
    for (int i = 0; i < 16; ++i) rows[i] = load<16>(sums + i * kTileRows);
    transpose(rows);
    float* target = c.target + n * c.rank + r;
    if (c.rank >= kTileRows) {
      for (ptrdiff_t j = 0; j < columns; ++j, target += c.rank) emit<16>(c, rows[j], target, ranks, square);
      return;
    }
    // Few ranks: rows are joined, each over the padding of the one before.
    alignas(64) float joined[kTileSums + 16];
    for (ptrdiff_t j = 0; j < columns; ++j) store<16>(joined + j * c.rank, rows[j]);
    for (ptrdiff_t at = 0; at < columns * c.rank; at += 16)
      emit<16>(c, load<16>(joined + at), target + at, columns * c.rank - at, square);
  }
};

// The columns of b in pairs: words [⌈ranks/16⌉, columns padded to 32 over 2, 16 ranks].
struct AmxFactors {
  static ptrdiff_t block(ptrdiff_t columns) { return padded_to(columns, kTileInner) / 2 * kTileRows; }

  template <int, class From>
  FFALORA_INLINE static void run(const From* b, ptrdiff_t columns, ptrdiff_t rank, uint32_t* words) {
    for (ptrdiff_t r = 0; r < rank; r += kTileRows)
      for (ptrdiff_t n = 0; n < padded_to(columns, kTileInner); n += 2, words += kTileRows) {
        const From* rows[2];
        for (int p = 0; p < 2; ++p) rows[p] = n + p < columns ? b + (n + p) * rank + r : nullptr;
        fill_words<DotWord, kTileRows, 1>(rows, rank - r, words);
      }
  }
};

// As RankInputGradient of rank_input.h; the chunk's words are AmxFactors.
struct AmxInputGradient {
  template <int>
  FFALORA_INLINE static void run(const InputChunk<bf16>* chunk) {
    const InputChunk<bf16>& c = *chunk;
    ptrdiff_t m = 0;
    for (; m + kMost * kTileRows <= c.tokens; m += kMost * kTileRows)
      rows<kMost>(c, c.wide + m * c.wide_stride, c.wide_stride, m, kMost * kTileRows);
    for (; m + kTileRows <= c.tokens; m += kTileRows)
      rows<1>(c, c.wide + m * c.wide_stride, c.wide_stride, m, kTileRows);
    if (m == c.tokens) return;
    alignas(64) bf16 last[kTileRows * kBlockColumns];  // a tile reads 16 rows
    std::memset(last, 0, sizeof(last));
    for (ptrdiff_t i = 0; m + i < c.tokens; ++i)
      std::memcpy(last + i * kBlockColumns, c.wide + (m + i) * c.wide_stride, c.width * sizeof(bf16));
    rows<1>(c, last, kBlockColumns, m, c.tokens - m);
  }

 private:
  static constexpr int kMost = 4;  // tiles of tokens that share the words of b

  // `count` tokens from m on, TILES tiles of them.
  template <int TILES>
  FFALORA_INLINE static void rows(const InputChunk<bf16>& c, const bf16* wide, ptrdiff_t stride, ptrdiff_t m,
                                  ptrdiff_t count) {
    const ptrdiff_t whole = c.width / kTileInner * kTileInner;
    alignas(64) bf16 edge[TILES * kTileNumbers];
    if (whole < c.width) {
      std::memset(edge, 0, sizeof(edge));
      for (ptrdiff_t i = 0; i < TILES * kTileRows; ++i)
        std::memcpy(edge + i * kTileInner, wide + i * stride + whole, (c.width - whole) * sizeof(bf16));
    }
    for (ptrdiff_t r = 0; r < c.rank; r += kTileRows) {
      const uint32_t* words = c.words + r / kTileRows * c.block_words + c.column / 2 * kTileRows;
      const auto add = [&](const bf16* at, ptrdiff_t row) __attribute__((always_inline)) {
        load_tile<4>(words, kTileBytes);
        for_tiles<TILES>([&](auto t) __attribute__((always_inline)) {
          load_tile<5 + t % 3>(at + t * kTileRows * row, row * sizeof(bf16));
          dot<t, 5 + t % 3, 4>();
        });
        words += kTileSums;
      };
      for_tiles<TILES>([&](auto t) __attribute__((always_inline)) { zero_tile<t>(); });
      for (ptrdiff_t n = 0; n < whole; n += kTileInner) add(wide + n, stride);
      if (whole < c.width) add(edge, kTileInner);
      alignas(64) float sums[TILES * kTileSums];
      for_tiles<TILES>([&](auto t) __attribute__((always_inline)) { store_tile<t>(sums + t * kTileSums, kTileBytes); });
      for (ptrdiff_t i = 0; i < count; ++i) put(c, load<16>(sums + i * kTileRows), m + i, r);
    }
  }

  FFALORA_INLINE static void put(const InputChunk<bf16>& c, Vec<float, 16> row, ptrdiff_t m, ptrdiff_t r) {
    float* sums = c.sums + m * padded_to(c.rank, kTileRows) + r;
    if (!c.first) row += load<16>(sums);
    if (!c.last) return store<16>(sums, row);
    bf16* to = c.dh + m * c.dh_stride + r;
    row *= c.scale;
    if (c.rank - r >= kTileRows) return store<16>(to, row);
    alignas(64) bf16 short_row[kTileRows];
    store<16>(short_row, row);
    std::memcpy(to, short_row, (c.rank - r) * sizeof(bf16));
  }
};

}  // namespace ffalora

#endif
