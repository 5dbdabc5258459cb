// The only file that knows Python: integers become pointers, the GIL is released, a status becomes an exception.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <type_traits>

#include "slrfast/slrfast.h"

namespace py = pybind11;

namespace {

struct Unsupported : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct OutOfMemory : std::runtime_error {
  using std::runtime_error::runtime_error;
};

void check(slr_status status) {
  if (status == SLR_OK) return;
  if (status == SLR_INVALID_ARGUMENT) throw py::value_error(slr_last_error());
  if (status == SLR_UNSUPPORTED) throw Unsupported(slr_last_error());
  if (status == SLR_OUT_OF_MEMORY) throw OutOfMemory(slr_last_error());
  throw std::runtime_error(slr_last_error());
}

template <class T>
using Argument = std::conditional_t<std::is_pointer_v<T>, uintptr_t, T>;

template <class T>
T convert(Argument<T> argument) {
  if constexpr (std::is_pointer_v<T>)
    return reinterpret_cast<T>(argument);
  else
    return argument;
}

template <class... T, class... Extra>
void define(py::module_& module, const char* name, slr_status (*function)(T...), const Extra&... extra) {
  const auto call = [function](Argument<T>... arguments) { check(function(convert<T>(arguments)...)); };
  module.def(name, call, extra..., py::call_guard<py::gil_scoped_release>());
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "The C interface of slrfast (csrc/include/slrfast/slrfast.h); buffers are passed as addresses.";
  py::register_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const Unsupported& error) {
      PyErr_SetString(PyExc_NotImplementedError, error.what());
    } catch (const OutOfMemory& error) {
      PyErr_SetString(PyExc_MemoryError, error.what());
    }
  });

  module.def("build_info", slr_build_info);
  module.def("cpu_isa", [] {
    const char* name = nullptr;
    check(slr_cpu_isa(&name));
    return name;
  });
  define(module, "augment_cpu", slr_augment_cpu);
  define(module, "bank_losses_cpu", slr_bank_losses_cpu);
  define(module, "channel_mask_cpu", slr_channel_mask_cpu);
  define(module, "ctc_beam_search_cpu", slr_ctc_beam_search_cpu);
  define(module, "enqueue_cpu", slr_enqueue_cpu);
  define(module, "feature_kl_cpu", slr_feature_kl_cpu);
  define(module, "gcn_map_cpu", slr_gcn_map_cpu);
  define(module, "gcn_map_grad_cpu", slr_gcn_map_grad_cpu);
  define(module, "gcn_output_cpu", slr_gcn_output_cpu);
  define(module, "gcn_output_grad_cpu", slr_gcn_output_grad_cpu);
  define(module, "graph_conv_cpu", slr_graph_conv_cpu);
  define(module, "graph_conv_grad_cpu", slr_graph_conv_grad_cpu);
  define(module, "info_nce_cpu", slr_info_nce_cpu);
  define(module, "masked_motion_loss_cpu", slr_masked_motion_loss_cpu);
  define(module, "masked_pose_loss_cpu", slr_masked_pose_loss_cpu);
  define(module, "mined_bce_cpu", slr_mined_bce_cpu);
  define(module, "motion_cpu", slr_motion_cpu);
  define(module, "motion_cuda", slr_motion_cuda);
  define(module, "motion_grad_cpu", slr_motion_grad_cpu);
  define(module, "motion_grad_cuda", slr_motion_grad_cuda);
  define(module, "motion_mask_cpu", slr_motion_mask_cpu);
  define(module, "neighbor_kl_cpu", slr_neighbor_kl_cpu);
  define(module, "otsu_mask_cpu", slr_otsu_mask_cpu);
  define(module, "part_gcn_cpu", slr_part_gcn_cpu);
  define(module, "part_max_cpu", slr_part_max_cpu);
  define(module, "part_max_grad_cpu", slr_part_max_grad_cpu);
  define(module, "pose_views_cpu", slr_pose_views_cpu);
  define(module, "resample_cpu", slr_resample_cpu);
  define(module, "resample_nearest_cpu", slr_resample_nearest_cpu);
  define(module, "sign_text_similarity_cpu", slr_sign_text_similarity_cpu);
  define(module, "sign_text_similarity_grad_cpu", slr_sign_text_similarity_grad_cpu);
  define(module, "topk_similarity_cpu", slr_topk_similarity_cpu);
  define(module, "topk_similarity_grad_cpu", slr_topk_similarity_grad_cpu);
}
