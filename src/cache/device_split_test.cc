#include "cache/device_split.h"

#include <gtest/gtest.h>

#include <stdexcept>

namespace kvquant {
namespace {

std::vector<int64_t> ends_of(size_t num_devices, int64_t num_layers, const LayerBytes& bytes) {
  return split_layers(std::vector<CudaDevice*>(num_devices), num_layers, bytes).ends;
}

TEST(DeviceSplit, LayersAreSpreadEvenly) {
  EXPECT_EQ(ends_of(1, 5, {10, 3, 3}), (std::vector<int64_t>{5}));
  EXPECT_EQ(ends_of(2, 8, {10, 0, 0}), (std::vector<int64_t>{4, 8}));
  EXPECT_EQ(ends_of(3, 8, {10, 0, 0}), (std::vector<int64_t>{3, 5, 8}));
  EXPECT_EQ(ends_of(4, 4, {10, 0, 0}), (std::vector<int64_t>{1, 2, 3, 4}));
}

TEST(DeviceSplit, WhatLiesBeforeAndBehindCounts) {
  EXPECT_EQ(ends_of(2, 8, {10, 40, 0}), (std::vector<int64_t>{2, 8}));
  EXPECT_EQ(ends_of(2, 8, {10, 0, 40}), (std::vector<int64_t>{6, 8}));
  EXPECT_EQ(ends_of(2, 8, {10, 1000, 0}), (std::vector<int64_t>{1, 8})) << "each has a layer";
  EXPECT_EQ(ends_of(3, 4, {10, 0, 1000}), (std::vector<int64_t>{2, 3, 4}));
}

TEST(DeviceSplit, ALayerIsOnOneDevice) {
  const DeviceSplit split = split_layers(std::vector<CudaDevice*>(3), 7, {1, 0, 0});
  for (int64_t layer = 0; layer < 7; ++layer) {
    const size_t place = split.place_of(layer);
    EXPECT_LE(split.first_layer(place), layer);
    EXPECT_LT(layer, split.ends[place]);
  }
  EXPECT_EQ(split.num_layers(), 7);
}

TEST(DeviceSplit, MoreDevicesThanLayersAreRefused) {
  EXPECT_THROW(ends_of(3, 2, {1, 0, 0}), std::invalid_argument);
  EXPECT_THROW(ends_of(0, 2, {1, 0, 0}), std::invalid_argument);
}

}  // namespace
}  // namespace kvquant
