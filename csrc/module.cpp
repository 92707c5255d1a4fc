// Python bindings. Tensors arrive as addresses; ffalora_kernels.cpu has checked shapes and dtypes and keeps them alive.
#include <pybind11/pybind11.h>

#include "kernels.h"

namespace py = pybind11;

namespace ffalora {
namespace {

using Address = uintptr_t;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
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

void bind_clipping(py::module_& m) {
  m.def(
      "clip_reduce",
      [](Address total, ptrdiff_t total_stride, Address arena, ptrdiff_t arena_stride, Address squares,
         ptrdiff_t squares_stride, Address client, ptrdiff_t segments, Address max_grad_norm, Address group_columns,
         ptrdiff_t groups, bool automatic, double gamma, Address factors, Address norms, int threads) {
        const Clipping clipping{at<const double>(max_grad_norm), at<const int32_t>(group_columns), groups, automatic,
                                gamma};
        clip_reduce(at<double>(total), total_stride, at<const float>(arena), arena_stride, at<const double>(squares),
                    squares_stride, at<const int32_t>(client), segments, clipping, at<double>(factors),
                    at<double>(norms), threads);
      },
      py::call_guard<py::gil_scoped_release>());
}

void bind_level(py::module_& m) {
  m.def("level", [] { return static_cast<int>(level()); }, "Instruction set in use: 0 baseline, 1 AVX2, 2 AVX-512.");
  m.def("set_level", &set_level, "Chooses a lower instruction set (tests); False where the processor lacks it.");
}

}  // namespace
}  // namespace ffalora

PYBIND11_MODULE(_cpu, m) {
  m.doc() = "C++ kernels of ffalora_kernels.cpu on plain pointers.";
  ffalora::bind_activations(m);
  ffalora::bind_clipping(m);
  ffalora::bind_level(m);
}
