// backward: dh = scale · dy b_c, and per segment g = scale · dyᵀ h into arena columns.
//
// Chunk by chunk of a segment's tokens: dh reads the chunk from memory, g finds it in the cache.
#include "contract.h"
#include "gradient.h"

namespace ffalora {
namespace {

// What dh is made by: sums with ranks in the lanes of vectors …
template <class Numbers, class Word>
struct ByLanes {
  using T = Numbers;
  static ptrdiff_t ranks() { return lanes(); }  // of a block
  static ptrdiff_t block(ptrdiff_t columns) { return FactorWords<Word>::block(columns, ranks()); }
  template <class From>
  static void turn(const From* b, ptrdiff_t columns, ptrdiff_t rank, uint32_t* words) {
    dispatch_words<Word, FactorWords<Word>>(b, columns, rank, words);
  }
  static constexpr bool kTiles = false;
  static void run(const InputChunk<T>* chunk) { dispatch_words<Word, RankInputGradient<T, Word>>(chunk); }
};

#ifdef FFALORA_AMX
// … or in the columns of tiles.
struct ByTiles {
  using T = bf16;
  static ptrdiff_t ranks() { return kTileRows; }
  static ptrdiff_t block(ptrdiff_t columns) { return AmxFactors::block(columns); }
  template <class From>
  static void turn(const From* b, ptrdiff_t columns, ptrdiff_t rank, uint32_t* words) {
    dispatch<AmxFactors>(b, columns, rank, words);
  }
  static constexpr bool kTiles = true;
  static void run(const InputChunk<T>* chunk) { dispatch<AmxInputGradient>(chunk); }
};
#endif

// dh of runs of tokens.
template <class Way>
class InputGradients {
  using T = typename Way::T;

 public:
  static constexpr bool kTiles = Way::kTiles;

  InputGradients(const Activations& dy, const AdapterB& b, const Activations& dh, float scale, int threads)
      : dy_(dy),
        dh_(dh),
        scale_(scale),
        block_words_(Way::block(dy.columns)),
        client_words_(rank_blocks(dh.columns, Way::ranks()) * block_words_) {
    static thread_local Scratch<uint32_t> word_scratch;
    uint32_t* words = word_scratch.get(b.clients * client_words_);
    words_ = words;
    const auto turn = [&](const auto* factors, ptrdiff_t c) {
      Way::turn(factors + c * b.stride, dy.columns, dh.columns, words + c * client_words_);
    };
    parallel_for(b.clients, threads, [&](ptrdiff_t c) {
      b.half ? turn(static_cast<const bf16*>(b.data), c) : turn(static_cast<const float*>(b.data), c);
    });
  }

  // Sums of a run between two ranges of columns.
  float* sums(ptrdiff_t tokens) const {
    static thread_local Scratch<float> sum_scratch;
    return sum_scratch.get(dy_.columns > kBlockColumns ? tokens * sums_stride() : 0);
  }

  ptrdiff_t sums_stride() const { return rank_blocks(dh_.columns, Way::ranks()) * Way::ranks(); }

  // A client's tokens, a range of columns; the last range writes dh.
  void operator()(const Part& part, ptrdiff_t client, float* sums) const {
    InputChunk<T> chunk;
    chunk.wide = dy_.row<const T>(part.first) + part.column;
    chunk.wide_stride = dy_.stride;
    chunk.width = part.end - part.column;
    chunk.words = words_ + client * client_words_;
    chunk.column = part.column;
    chunk.block_words = block_words_;
    chunk.rank = dh_.columns;
    chunk.tokens = part.last - part.first;
    chunk.sums = sums;
    chunk.first = part.column == 0;
    chunk.last = part.end == dy_.columns;
    chunk.scale = scale_;
    chunk.dh = dh_.row<T>(part.first);
    chunk.dh_stride = dh_.stride;
    Way::run(&chunk);
  }

 private:
  Activations dy_, dh_;
  float scale_;
  ptrdiff_t block_words_, client_words_;
  const uint32_t* words_;
};

template <class InputGradients>
void backward_with(const InputGradients& input_gradients, SegmentGradients& gradients, const Segments& segments,
                   ptrdiff_t columns, int threads) {
  const ptrdiff_t groups = gradients.groups();
  if (by_segment(segments, threads)) {
    parallel_for(segments.count, threads, [&](ptrdiff_t i) {
      const ptrdiff_t start = segments.offsets[i];
      float* sums = input_gradients.sums(segments.offsets[i + 1] - start);
      gradients.segment(i, 0, groups, [&](const Part& part) {
        input_gradients(part, segments.client[i], sums + (part.first - start) * input_gradients.sums_stride());
      });
    });
  } else {
    const std::vector<Run> runs = token_runs(segments, 64);
    parallel_for(runs.size(), threads, [&](ptrdiff_t i) {
      const TilesInUse in_use(InputGradients::kTiles);
      float* sums = input_gradients.sums(runs[i].last - runs[i].first);
      for (ptrdiff_t n = 0; n < columns; n += kBlockColumns)
        input_gradients({runs[i].first, runs[i].last, n, columns - n < kBlockColumns ? columns : n + kBlockColumns},
                        runs[i].client, sums);
    });
    parallel_for(segments.count * groups, threads, [&](ptrdiff_t item) {
      gradients.segment(item / groups, item % groups, item % groups + 1, [](const Part&) {});
    });
  }
  gradients.write_squares();
}

void zero(const Activations& t, ptrdiff_t rows) {
  for (ptrdiff_t m = 0; m < rows; ++m)
    t.half ? std::memset(t.row<bf16>(m), 0, t.columns * 2) : std::memset(t.row<float>(m), 0, t.columns * 4);
}

}  // namespace

void backward(const Activations& dy, const Activations& h, const AdapterB& b, const Activations& dh,
              const Segments& segments, float scale, const ArenaColumns& arena, int threads) {
  SegmentGradients gradients(dy, h, true, scale, segments, arena);
  if (dy.columns == 0) zero(dh, segments.offsets[segments.count]);
  const auto with = [&](const auto& input_gradients) {
    backward_with(input_gradients, gradients, segments, dy.columns, threads);
  };
#ifdef FFALORA_AMX
  if (dy.half && amx()) return with(InputGradients<ByTiles>(dy, b, dh, scale, threads));
#endif
#ifdef FFALORA_BF16_DOT
  if (dy.half && bf16_dot()) return with(InputGradients<ByLanes<bf16, DotWord>>(dy, b, dh, scale, threads));
#endif
  if (dy.half) return with(InputGradients<ByLanes<bf16, FloatWord>>(dy, b, dh, scale, threads));
  with(InputGradients<ByLanes<float, FloatWord>>(dy, b, dh, scale, threads));
}

}  // namespace ffalora
