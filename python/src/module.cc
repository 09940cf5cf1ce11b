// kvquant._core: what include/kvquant and the engine's headers declare, under the same names.
// std::invalid_argument becomes ValueError; the types of error.h are RuntimeErrors of their names.
#include <nanobind/nanobind.h>

#include "bindings.h"
#include "kvquant/error.h"

namespace nb = nanobind;

NB_MODULE(_core, module) {
  using namespace kvquant;
  module.doc() = "The engine of kvquant; use it through the package kvquant.";
  const nb::exception<FormatError> format_error(module, "FormatError", PyExc_RuntimeError);
  const nb::exception<IoError> io_error(module, "IoError", PyExc_RuntimeError);
  const nb::exception<OutOfMemory> out_of_memory(module, "OutOfMemory", PyExc_RuntimeError);
  const nb::exception<DeviceError> device_error(module, "DeviceError", PyExc_RuntimeError);
  python::bind_codebook(module);
  python::bind_sparse(module);
  python::bind_quantizer(module);
  python::bind_attention(module);
  python::bind_spec(module);
  python::bind_cache(module);
  python::bind_model(module);
  python::bind_session(module);
  python::bind_evaluation(module);
  python::bind_calibration(module);
  python::bind_preset(module);
  python::bind_tuning(module);
  python::bind_policy(module);
  python::bind_energy(module);
}
