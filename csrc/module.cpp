// Python bindings. Tensors arrive as addresses; ffalora_kernels.cpu has checked shapes and dtypes and keeps them alive.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <initializer_list>
#include <string>
#include <system_error>
#include <type_traits>

#include "kernels.h"
#include "secure_noise.h"

namespace py = pybind11;

namespace ffalora {
namespace {

using Address = uintptr_t;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

// A field of a struct and how its value comes from Python: an address where it is a pointer.
template <class S>
struct Field {
  const char* name;
  void (*set)(S&, const py::handle&);
};

template <class T>
void from_python(T& field, const py::handle& value) {
  if constexpr (std::is_pointer_v<T>) {
    field = at<std::remove_pointer_t<T>>(value.cast<Address>());
  } else {
    field = value.cast<T>();
  }
}

// The name and the member are one word, so that they cannot be paired wrongly.
#define FIELD(S, member)                                                         \
  Field<S> {                                                                     \
    #member, [](S& s, const py::handle& value) { from_python(s.member, value); } \
  }

// A struct filled by name. Throws TypeError unless each of its fields is given, and nothing else.
template <class S>
S filled(const py::kwargs& given, std::initializer_list<Field<S>> fields) {
  S made{};
  for (const auto& field : fields) {
    if (!given.contains(field.name)) throw py::type_error(std::string("field ") + field.name + " is missing");
    field.set(made, given[field.name]);
  }
  if (given.size() != fields.size())
    throw py::type_error("a field is given that there is not: " + py::str(given).cast<std::string>());
  return made;
}

Activations matrix(Address data, ptrdiff_t columns, ptrdiff_t stride, bool half) {
  return {at<void>(data), columns, stride, half};
}

void bind_activations(py::module_& m) {
  using py::arg;
  py::class_<Segments>(m, "Segments").def(py::init([](Address offsets, Address client, ptrdiff_t count) {
    return Segments{at<const int32_t>(offsets), at<const int32_t>(client), count};
  }));
  py::class_<Activations>(m, "Activations").def(py::init(&matrix));
  py::class_<AdapterB>(m, "AdapterB").def(py::init([](Address data, ptrdiff_t clients, ptrdiff_t stride, bool half) {
    return AdapterB{at<const void>(data), clients, stride, half};
  }));
  py::class_<ArenaColumns>(m, "ArenaColumns")
      .def(py::init([](Address data, ptrdiff_t stride, bool accumulate, Address squares, ptrdiff_t squares_stride) {
        return ArenaColumns{at<float>(data), stride, accumulate, at<double>(squares), squares_stride};
      }));
  m.def("expand", &expand, py::call_guard<py::gil_scoped_release>());
  m.def("backward", &backward, py::call_guard<py::gil_scoped_release>());
  m.def("outer", &outer, py::call_guard<py::gil_scoped_release>());
}

void bind_head_loss(py::module_& m) {
  py::class_<HeadLogits>(m, "HeadLogits").def(py::init([](const py::kwargs& given) {
    return filled<HeadLogits>(
        given, {FIELD(HeadLogits, data), FIELD(HeadLogits, stride), FIELD(HeadLogits, rows), FIELD(HeadLogits, columns),
                FIELD(HeadLogits, targets), FIELD(HeadLogits, weights), FIELD(HeadLogits, softcap),
                FIELD(HeadLogits, losses), FIELD(HeadLogits, right)});
  }));
  m.def("softmax_gradient", &softmax_gradient, py::call_guard<py::gil_scoped_release>());
}

void bind_attention(py::module_& m) {
  py::class_<Heads>(m, "Heads").def(py::init([](Address data, ptrdiff_t token_stride, ptrdiff_t head_stride) {
    return Heads{at<void>(data), token_stride, head_stride};
  }));
  py::class_<Attention>(m, "Attention").def(py::init([](const py::kwargs& given) {
    return filled<Attention>(
        given, {FIELD(Attention, q), FIELD(Attention, k), FIELD(Attention, v), FIELD(Attention, out),
                FIELD(Attention, normalisers), FIELD(Attention, heads), FIELD(Attention, kv_heads),
                FIELD(Attention, width), FIELD(Attention, tokens), FIELD(Attention, offsets), FIELD(Attention, count),
                FIELD(Attention, scale), FIELD(Attention, causal), FIELD(Attention, half)});
  }));
  m.def("attention", &attention, py::call_guard<py::gil_scoped_release>());
  m.def(
      "attention_gradient",
      [](const Attention& forward, const Heads& dout, const Heads& dq, const Heads& dk, const Heads& dv, int threads) {
        attention_gradient({forward, dout, dq, dk, dv}, threads);
      },
      py::call_guard<py::gil_scoped_release>());
}

void bind_clipping(py::module_& m) {
  py::class_<Matrix>(m, "Matrix").def(py::init([](Address data, ptrdiff_t stride) {
    return Matrix{at<void>(data), stride};
  }));
  py::class_<Clipping>(m, "Clipping").def(py::init([](const py::kwargs& given) {
    return filled<Clipping>(
        given, {FIELD(Clipping, clients), FIELD(Clipping, columns), FIELD(Clipping, total), FIELD(Clipping, arena),
                FIELD(Clipping, squares), FIELD(Clipping, client), FIELD(Clipping, segments),
                FIELD(Clipping, max_grad_norm), FIELD(Clipping, group_columns), FIELD(Clipping, groups),
                FIELD(Clipping, automatic), FIELD(Clipping, gamma), FIELD(Clipping, factors), FIELD(Clipping, norms)});
  }));
  m.def("clip_reduce", &clip_reduce, py::call_guard<py::gil_scoped_release>());
}

void bind_step(py::module_& m) {
  py::class_<Update>(m, "Update").def(py::init([](const py::kwargs& given) {
    return filled<Update>(given, {FIELD(Update, adamw), FIELD(Update, beta1), FIELD(Update, beta2), FIELD(Update, eps),
                                  FIELD(Update, weight_decay), FIELD(Update, mu), FIELD(Update, dp_bias_correction)});
  }));
  py::class_<StepTensors>(m, "StepTensors").def(py::init([](const py::kwargs& given) {
    return filled<StepTensors>(given,
                               {FIELD(StepTensors, state), FIELD(StepTensors, exp_avg), FIELD(StepTensors, exp_avg_sq),
                                FIELD(StepTensors, total), FIELD(StepTensors, anchor), FIELD(StepTensors, clients),
                                FIELD(StepTensors, columns), FIELD(StepTensors, client_id), FIELD(StepTensors, step),
                                FIELD(StepTensors, age), FIELD(StepTensors, noise_std), FIELD(StepTensors, denominator),
                                FIELD(StepTensors, lr), FIELD(StepTensors, index)});
  }));
  m.def(
      "privatize_step",
      [](const StepTensors& tensors, const Update& update, uint64_t key, uint32_t stream, int threads) {
        privatize_step(tensors, key, stream, update, threads);
      },
      py::arg("tensors"), py::arg("update"), py::kw_only(), py::arg("key"), py::arg("stream"), py::arg("threads"),
      py::call_guard<py::gil_scoped_release>());
  m.def("gaussian",
        [](uint64_t key, uint32_t client_id, uint32_t step, uint32_t stream, uint32_t first, ptrdiff_t count,
           Address normals) { gaussian(key, client_id, step, stream, first, count, at<double>(normals)); });
}

ChaChaKey key_from(const std::array<uint32_t, 8>& words, const std::array<uint32_t, 3>& nonce) {
  ChaChaKey key;
  std::copy(words.begin(), words.end(), key.words);
  std::copy(nonce.begin(), nonce.end(), key.nonce);
  return key;
}

void bind_secure_noise(py::module_& m) {
  py::register_local_exception_translator([](std::exception_ptr thrown) {
    try {
      if (thrown) std::rethrow_exception(thrown);
    } catch (const std::system_error& failure) {
      PyErr_SetString(PyExc_OSError, failure.what());
    }
  });
  m.def(
      "add_secure_normals",
      [](Address numbers, ptrdiff_t count, double std, int threads) {
        add_secure_normals(at<double>(numbers), count, std, threads);
      },
      py::call_guard<py::gil_scoped_release>(), "Adds std times secure normals; the key never leaves this call.");
  // Tests compare these streams with published vectors, with the formula and with the GPU's.
  m.def("add_normals_of_key", [](const std::array<uint32_t, 8>& words, const std::array<uint32_t, 3>& nonce,
                                 uint32_t block, Address numbers, ptrdiff_t count, double std, int threads) {
    add_normals_of_key(key_from(words, nonce), block, at<double>(numbers), count, std, threads);
  });
  m.def("key_stream",
        [](const std::array<uint32_t, 8>& words, const std::array<uint32_t, 3>& nonce, uint32_t block, ptrdiff_t blocks,
           Address stream) { key_stream(key_from(words, nonce), block, blocks, at<uint32_t>(stream)); });
}

void bind_level(py::module_& m) {
  m.def(
      "level", [] { return static_cast<int>(level()); },
      "Instruction set in use: 0 baseline, 1 AVX2, 2 AVX-512, 3 with bfloat16 dot products, 4 with AMX.");
  m.def("set_level", &set_level, "Chooses a lower instruction set (tests); False where the processor lacks it.");
  m.def("set_amx", &set_amx,
        "Uses AMX also where the processor lacks it (tests that emulate it); False where the build does.");
}

}  // namespace
}  // namespace ffalora

PYBIND11_MODULE(_cpu, m) {
  m.doc() = "C++ kernels of ffalora_kernels.cpu on plain pointers.";
  ffalora::bind_activations(m);
  ffalora::bind_head_loss(m);
  ffalora::bind_attention(m);
  ffalora::bind_clipping(m);
  ffalora::bind_step(m);
  ffalora::bind_secure_noise(m);
  ffalora::bind_level(m);
}
