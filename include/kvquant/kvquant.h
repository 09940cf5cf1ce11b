// Start here: every public header of kvquant, and where the rest lives.
//
// Public so far are the types that all parts share:
//
//   error.h        what is thrown, and which exit code it becomes
//   tensor_view.h  TensorView, a strided view of a tensor; shapes stand in comments everywhere
//   spec.h         CacheSpec, what is stored for keys and values ("nuq3-1%,sink=4"), and its
//   grammar
//   preset.h       Preset, a spec tuned for a model, with its figures and its calibration
//   codebook.h     non-uniform codebooks: fitted, from a formula, from files
//   sparse.h       BlockedCSCMatrix, BlockedCSRMatrix: outliers that grow token by token
//   quantizer.h    BatchedKVQuantizer, QuantizedKVCache: keys and values of a padded batch
//   policy.h       names for how hard a cache is compressed, chosen by memory
//   attention.h    PrefillQuantizedAttention over such a batch, compressed from the first token on
//
// What runs a model is used by the program through the headers of src/; they are documented like
// these, and become public with the version that promises to keep them:
//
//   src/model/model.h      Model, a checkpoint ready to run; session.h: feed, generate
//   src/cache/kv_cache.h   KvCache, sequences stored as a spec says, and views for attention
//   src/ops/attend.h       attention over those views
//   src/eval/perplexity.h  what a spec costs in quality
//
// docs/library.md shows them at work; docs/design.md follows one token through all of them.
#pragma once

#include "kvquant/attention.h"
#include "kvquant/codebook.h"
#include "kvquant/error.h"
#include "kvquant/policy.h"
#include "kvquant/preset.h"
#include "kvquant/quantizer.h"
#include "kvquant/sparse.h"
#include "kvquant/spec.h"
#include "kvquant/tensor_view.h"
