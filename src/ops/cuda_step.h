// A decode step on a device, gathered before it runs: what is queued one call at a time becomes a
// list, what the host tells kernels one copy. A list that comes again runs as a CUDA graph, for
// which the host pays once what it pays for a single kernel otherwise.
//
// Lists come again because everything that changes from step to step lies in memory: tables of a
// cache stay where they are, and descriptions of the work are staged (CudaDevice::stage) at
// addresses that depend on their rounded sizes only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <variant>
#include <vector>

#include "ops/cuda_device.h"

namespace kvquant {

// Room for `count` things of which there will be more or fewer in the next step: at most an eighth
// too much, or 15.
constexpr int64_t step_room(int64_t count) {
  int64_t unit = 16;
  while (unit * 16 <= count) unit *= 2;
  return (count + unit - 1) / unit * unit;
}

// Lists of nodes that came before, and the graphs made of them. The list that was used least
// recently goes first.
template <class Graph>
class CudaGraphs {
 public:
  static constexpr size_t kMost = 16;

  // Null: it has none.
  Graph* find(std::span<const CudaNode> nodes) {
    Known* known = look_up(nodes);
    return known != nullptr && known->graph ? &*known->graph : nullptr;
  }
  // Whether a graph pays: the list came before. From now on it did.
  bool came_before(std::span<const CudaNode> nodes) {
    if (look_up(nodes) != nullptr) return true;
    if (known_.size() == kMost) known_.erase(known_.begin());
    known_.push_back({{nodes.begin(), nodes.end()}, std::nullopt});
    return false;
  }
  // Of a list that came before.
  Graph& keep(std::span<const CudaNode> nodes, Graph graph) {
    return look_up(nodes)->graph.emplace(std::move(graph));
  }

 private:
  struct Known {
    std::vector<CudaNode> nodes;
    std::optional<Graph> graph;
  };
  // Moves what it finds to the end.
  Known* look_up(std::span<const CudaNode> nodes) {
    for (auto it = known_.rbegin(); it != known_.rend(); ++it) {
      if (!std::equal(nodes.begin(), nodes.end(), it->nodes.begin(), it->nodes.end())) continue;
      std::rotate(it.base() - 1, it.base(), known_.end());
      return &known_.back();
    }
    return nullptr;
  }

  std::vector<Known> known_;
};

// `inner`, whose steps are gathered.
std::unique_ptr<CudaDevice> gather_steps(std::unique_ptr<CudaDevice> inner);

}  // namespace kvquant
