// The parts of the module: each adds its functions and classes.
#pragma once

#include <nanobind/nanobind.h>

namespace kvquant::python {

void bind_codebook(nanobind::module_& module);
void bind_sparse(nanobind::module_& module);
void bind_quantizer(nanobind::module_& module);
void bind_attention(nanobind::module_& module);
void bind_spec(nanobind::module_& module);
void bind_cache(nanobind::module_& module);
void bind_model(nanobind::module_& module);
void bind_session(nanobind::module_& module);
void bind_evaluation(nanobind::module_& module);
void bind_calibration(nanobind::module_& module);
void bind_tuning(nanobind::module_& module);
void bind_preset(nanobind::module_& module);
void bind_policy(nanobind::module_& module);
void bind_energy(nanobind::module_& module);

}  // namespace kvquant::python
