// The operations of ffalora_kernels.ops on plain pointers. Sizes and meanings are those of ops.py; strides count
// elements.
#pragma once

#include <cstddef>
#include <cstdint>

#include "simd.h"

namespace ffalora {

struct Segments {
  const int32_t* offsets;  // [count + 1]
  const int32_t* client;   // [count]
  ptrdiff_t count;
};

// A matrix of activations: float32, or bfloat16 where `half`.
struct Activations {
  void* data;
  ptrdiff_t columns, stride;
  bool half;

  template <class T>
  T* row(ptrdiff_t m) const {
    return static_cast<T*>(data) + m * stride;
  }
};

// b [clients, columns, rank], each client's matrix contiguous.
struct AdapterB {
  const void* data;
  ptrdiff_t clients, stride;
  bool half;
};

// Where the gradients of all segments go: columns of the arena, and one column of the squared norms (or null).
struct ArenaColumns {
  float* data;  // already at the first column
  ptrdiff_t stride;
  bool accumulate;
  double* squares;
  ptrdiff_t squares_stride;
};

void expand(const Activations& y, const Activations& h, const AdapterB& b, const Segments& segments, float scale,
            int threads);

void backward(const Activations& dy, const Activations& h, const AdapterB& b, const Activations& dh,
              const Segments& segments, float scale, const ArenaColumns& arena, int threads);

// q.data null: sums of the columns of p.
void outer(const Activations& p, const Activations& q, const Segments& segments, float scale, const ArenaColumns& arena,
           int threads);

// Logits of a few tokens, and what is computed of each: its loss, whether its target's logit is the largest, and (in
// place, or into `gradient`; none where that is null) weight · (softmax - one-hot). The logits are overwritten.
struct HeadLogits {
  float* data;  // [rows, columns]
  ptrdiff_t stride, rows, columns;
  const int64_t* targets;  // [rows]; losses and gradient are NaN where it is not a column
  const float* weights;    // [rows]
  float softcap;           // 0: none
  float* losses;           // [rows]
  int32_t* right;          // [rows]
};

void softmax_gradient(const HeadLogits& logits, const Activations& gradient, int threads);

// Rows [tokens, heads] of as many numbers as a head is wide, adjacent; float32 or bfloat16.
struct Heads {
  void* data;
  ptrdiff_t token_stride, head_stride;

  template <class T>
  T* row(ptrdiff_t token, ptrdiff_t head) const {
    return static_cast<T*>(data) + token * token_stride + head * head_stride;
  }
};

struct Attention {
  Heads q, k, v, out;
  float* normalisers;  // [heads, tokens]: the logarithm of each query's sum of exponentials
  ptrdiff_t heads, kv_heads, width, tokens;
  const int32_t* offsets;  // [count + 1]
  ptrdiff_t count;
  float scale;
  bool causal, half;
};

struct AttentionGradient {
  Attention forward;  // out is not read
  Heads dout, dq, dk, dv;
};

// out and normalisers are written.
void attention(const Attention& tensors, int threads);
// dq, dk and dv are written.
void attention_gradient(const AttentionGradient& tensors, int threads);

struct Matrix {  // rows of float32 (totals: float64), or null
  void* data;
  ptrdiff_t stride;

  template <class T>
  T* row(ptrdiff_t c) const {
    return data == nullptr ? nullptr : static_cast<T*>(data) + c * stride;
  }
};

struct Clipping {
  ptrdiff_t clients, columns;
  Matrix total;           // [clients, columns], added to
  Matrix arena;           // [segments, columns]
  const double* squares;  // [segments, groups], or null: computed from the arena
  const int32_t* client;  // [segments]
  ptrdiff_t segments;
  const double* max_grad_norm;   // [clients, groups]
  const int32_t* group_columns;  // [groups + 1]
  ptrdiff_t groups;
  bool automatic;
  double gamma;
  double *factors, *norms;  // [segments, groups], written
};

void clip_reduce(const Clipping& clipping, int threads);

struct Update {
  bool adamw;
  double beta1, beta2, eps, weight_decay, mu;
  bool dp_bias_correction;
};

struct StepTensors {
  Matrix state, exp_avg, exp_avg_sq, total, anchor;
  ptrdiff_t clients, columns;
  const int64_t *client_id, *step, *age;       // [clients]
  const double *noise_std, *denominator, *lr;  // [clients]
  const int32_t* index;                        // [columns], or null for 0 … columns-1
};

void privatize_step(const StepTensors& tensors, uint64_t key, uint32_t stream, const Update& update, int threads);

// Standard normals at parameter indices first … first+count-1, as reference.gaussian_ref defines them.
void gaussian(uint64_t key, uint32_t client_id, uint32_t step, uint32_t stream, uint32_t first, ptrdiff_t count,
              double* normals);

}  // namespace ffalora
