#include "ops/linear.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "kvquant/error.h"

namespace kvquant {
namespace {

constexpr float kGuard = -12345.0f;

float weight_value(int64_t row, int64_t in) {
  const auto hash = static_cast<uint32_t>(row * 7919 + in * 104729) * 2654435761u;
  return (static_cast<float>(hash >> 8) * 0x1p-23f - 1.0f) * 0.1f;
}

void quantized_row(int64_t row, int num_codes, QuantizedRow out) {
  for (size_t i = 0; i < out.codes.size(); ++i) {
    out.codes[i] = static_cast<uint8_t>((row * 31 + static_cast<int64_t>(i) * 57) % num_codes);
  }
  for (size_t g = 0; g < out.scales.size(); ++g) {
    const auto i = static_cast<float>((row + static_cast<int64_t>(g) * 3) % 7 + 1);
    out.scales[g] = to_half(0.001f * i);
    out.offsets[g] = to_half(-0.128f * i);
  }
}

PackedMatrix make_matrix(int64_t num_out, int64_t num_in, WeightType type, ThreadPool& pool,
                         int64_t seed = 0) {
  if (has_groups(type)) {
    const int num_codes = 1 << code_bits(type);
    return PackedMatrix::pack_groups(
        num_out, num_in, type,
        [=](int64_t row, QuantizedRow out) { quantized_row(row + seed, num_codes, out); }, pool);
  }
  return PackedMatrix::pack(
      num_out, num_in, type,
      [seed](int64_t row, std::span<float> out) {
        for (size_t i = 0; i < out.size(); ++i) {
          out[i] = weight_value(row + seed, static_cast<int64_t>(i));
        }
      },
      pool);
}

// A matrix of floats whose rows are further apart than they are long, all guards at first.
struct Matrix {
  Matrix(int64_t num_rows, int64_t num_columns)
      : rows(num_rows),
        columns(num_columns),
        stride(num_columns + 5),
        values(static_cast<size_t>(num_rows * (num_columns + 5) + 64), kGuard) {}

  TensorView<float, 2> view() { return {values.data(), {rows, columns}, {stride, 1}}; }
  TensorView<const float, 2> view() const { return {values.data(), {rows, columns}, {stride, 1}}; }
  float at(int64_t row, int64_t column) const {
    return values[static_cast<size_t>(row * stride + column)];
  }
  bool guards_are_intact() const {
    for (size_t i = 0; i < values.size(); ++i) {
      const auto row = static_cast<int64_t>(i) / stride, column = static_cast<int64_t>(i) % stride;
      if ((row >= rows || column >= columns) && values[i] != kGuard) return false;
    }
    return true;
  }

  int64_t rows, columns, stride;
  std::vector<float> values;
};

Matrix random_input(int64_t num_rows, int64_t num_in) {
  std::mt19937 rng(static_cast<unsigned>(num_rows * 1000 + num_in));
  std::normal_distribution<float> normal;
  Matrix x(num_rows, num_in);
  for (int64_t row = 0; row < num_rows; ++row) {
    for (float& v : x.view().row(row)) v = normal(rng);
  }
  return x;
}

std::vector<std::vector<float>> unpacked(const PackedMatrix& w) {
  std::vector<std::vector<float>> rows;
  for (int64_t row = 0; row < w.num_out(); ++row) {
    rows.emplace_back(static_cast<size_t>(w.num_in()));
    w.read_row(row, rows.back());
  }
  return rows;
}

// The largest deviation from sums in double, of `out` and of plain loops in the same precision.
struct Errors {
  double kernel = 0, naive = 0, largest = 0;
};

Errors errors_of(const PackedMatrix& w, const Matrix& x, const Matrix& out, bool rounds_to_bf16) {
  Errors errors;
  const auto weights = unpacked(w);
  for (int64_t row = 0; row < x.rows; ++row) {
    for (int64_t o = 0; o < w.num_out(); ++o) {
      double exact = 0;
      float naive = 0;
      for (int64_t i = 0; i < w.num_in(); ++i) {
        float a = x.at(row, i), b = weights[static_cast<size_t>(o)][static_cast<size_t>(i)];
        exact += double{a} * b;
        if (rounds_to_bf16) a = round_to_bfloat16(a), b = round_to_bfloat16(b);
        naive += a * b;
      }
      errors.kernel = std::max(errors.kernel, std::abs(out.at(row, o) - exact));
      errors.naive = std::max(errors.naive, std::abs(naive - exact));
      errors.largest = std::max(errors.largest, std::abs(exact));
    }
  }
  return errors;
}

std::string type_name(WeightType type) {
  switch (type) {
    case WeightType::kF32: return "f32";
    case WeightType::kBF16: return "bf16";
    case WeightType::kInt8: return "int8";
    case WeightType::kInt8x2: return "int8x2";
    case WeightType::kInt6x2: return "int6x2";
    case WeightType::kInt5: return "int5";
    case WeightType::kInt4: return "int4";
  }
  return "";
}

struct Shape {
  int64_t num_out, num_in;
};

// The reference has its own tests, by hand.
TEST(LinearReference, MultipliesByHand) {
  ThreadPool pool(1);
  LinearScratch scratch;
  const auto w = PackedMatrix::pack(
      2, 3, WeightType::kF32,
      [](int64_t row, std::span<float> out) {
        for (size_t i = 0; i < 3; ++i) out[i] = static_cast<float>(row * 3) + static_cast<float>(i);
      },
      pool);
  const std::vector<float> x{1, 2, 4};
  std::vector<float> out{100, 200};
  linear(w, row_major(x.data(), {1, 3}), row_major(out.data(), {1, 2}), Epilogue::kStore,
         {Precision::kF32, scratch, pool, Backend::kReference});
  EXPECT_EQ(out, (std::vector<float>{0 + 2 + 8, 3 + 8 + 20}));
  linear(w, row_major(x.data(), {1, 3}), row_major(out.data(), {1, 2}), Epilogue::kAdd,
         {Precision::kF32, scratch, pool, Backend::kReference});
  EXPECT_EQ(out, (std::vector<float>{20, 62}));
}

TEST(LinearReference, GatesByHand) {
  ThreadPool pool(1);
  LinearScratch scratch;
  const auto constant = [&](float value) {
    return PackedMatrix::pack(
        1, 1, WeightType::kF32, [value](int64_t, std::span<float> out) { out[0] = value; }, pool);
  };
  const float x = 1;
  float out = 0;
  linear_swiglu(constant(2.0f), constant(3.0f), row_major(&x, {1, 1}), row_major(&out, {1, 1}),
                {Precision::kF32, scratch, pool, Backend::kReference});
  EXPECT_NEAR(out, 2.0 / (1 + std::exp(-2.0)) * 3.0, 1e-6);
}

class Linear : public testing::TestWithParam<std::tuple<Backend, WeightType>> {
 protected:
  Backend backend() const { return std::get<0>(GetParam()); }
  WeightType type() const { return std::get<1>(GetParam()); }

  std::vector<Shape> shapes() const {
    if (has_groups(type())) return {{1, 32}, {64, 64}, {70, 96}, {130, 320}};
    return {{1, 1}, {3, 8}, {63, 31}, {64, 32}, {65, 33}, {130, 100}, {70, 300}};
  }

  // Whether x is rounded to multiples of max|x| / 16256 of its 32-group.
  bool rounds_to_steps(int64_t rows, Precision precision) const {
    return has_bf16_dots(backend()) && has_groups(type()) && rows <= 12 &&
           precision == Precision::kBF16;
  }

  ThreadPool pool_{2, ThreadPool::Pin::kNo};
  LinearScratch scratch_;
};

TEST_P(Linear, IsAsCloseToTheExactProductAsPlainLoops) {
  for (const Shape shape : shapes()) {
    const auto w = make_matrix(shape.num_out, shape.num_in, type(), pool_);
    for (const int64_t rows : {0, 1, 2, 3, 4, 5, 7, 12, 13, 16, 17, 64, 65, 300}) {
      if (rows > 65 && shape.num_in * shape.num_out > 20000) continue;
      for (const Precision precision : {Precision::kF32, Precision::kBF16}) {
        const Matrix x = random_input(rows, shape.num_in);
        Matrix out(rows, shape.num_out);
        linear(w, x.view(), out.view(), Epilogue::kStore, {precision, scratch_, pool_, backend()});
        EXPECT_TRUE(out.guards_are_intact()) << "rows=" << rows << " out=" << shape.num_out;
        if (rounds_to_steps(rows, precision)) continue;  // has tests of its own
        const bool bf16 = has_bf16_dots(backend()) && precision == Precision::kBF16 && rows > 1 &&
                          type() != WeightType::kF32;
        const Errors errors = errors_of(w, x, out, bf16);
        EXPECT_LE(errors.kernel, 2 * errors.naive + 1e-6 * errors.largest)
            << "rows=" << rows << " out=" << shape.num_out << " in=" << shape.num_in
            << " bf16=" << bf16;
      }
    }
  }
}

// The bound of the contract: 2^-14 of the sum over groups of max|x| sum|w|.
double int8_bound(std::span<const float> weights, std::span<const float> x) {
  double bound = 0;
  for (size_t first = 0; first < x.size(); first += kWeightGroup) {
    double largest = 0, sum = 0;
    for (size_t i = first; i < first + kWeightGroup; ++i) {
      largest = std::max(largest, std::abs(double{x[i]}));
      sum += std::abs(double{weights[i]});
    }
    bound += largest * sum;
  }
  return bound * 0x1p-14;
}

TEST_P(Linear, KeepsToTheBoundOfFewRowsTimesGroups) {
  if (!has_groups(type())) return;
  for (const Shape shape : shapes()) {
    const auto w = make_matrix(shape.num_out, shape.num_in, type(), pool_);
    const auto weights = unpacked(w);
    for (const int64_t rows : {1, 2, 3, 4, 5, 11, 12}) {
      Matrix x = random_input(rows, shape.num_in);
      for (int64_t row = 0; row < rows; ++row) {  // from tiny to huge, zeros and lone outliers
        for (float& v : x.view().row(row)) v *= std::pow(10.0f, static_cast<float>(row * 5 - 20));
        if (row % 3 == 1) x.view()(row, 7) *= 1000;
        if (row % 3 == 2) std::fill_n(x.view().row(row).begin(), kWeightGroup, 0.0f);
      }
      Matrix out(rows, shape.num_out);
      linear(w, std::as_const(x).view(), out.view(), Epilogue::kStore,
             {Precision::kBF16, scratch_, pool_, backend()});
      for (int64_t row = 0; row < rows; ++row) {
        const auto input = std::as_const(x).view().row(row);
        for (int64_t o = 0; o < shape.num_out; ++o) {
          const auto& own = weights[static_cast<size_t>(o)];
          double exact = 0;
          for (size_t i = 0; i < own.size(); ++i) exact += double{own[i]} * input[i];
          EXPECT_LE(std::abs(out.at(row, o) - exact), int8_bound(own, input) + 1e-37)
              << "rows=" << rows << " row=" << row << " out=" << o;
        }
      }
    }
  }
}

TEST_P(Linear, ErrsFarLessThanBf16OnFewRowsTimesGroups) {
  if (!has_groups(type())) return;
  const auto w = make_matrix(130, 320, type(), pool_);
  for (const int64_t rows : {1, 3, 12}) {
    const Matrix x = random_input(rows, 320);
    Matrix out(rows, 130);
    linear(w, x.view(), out.view(), Epilogue::kStore,
           {Precision::kBF16, scratch_, pool_, backend()});
    const Errors errors = errors_of(w, x, out, /*rounds_to_bf16=*/true);
    EXPECT_LE(errors.kernel, errors.naive / 10) << "rows=" << rows;
  }
}

// Groups whose scales would be no longer exact, or their inverse infinite.
TEST_P(Linear, TakesTheSmallestAndTheLargestInputs) {
  const auto w = make_matrix(65, 96, type(), pool_);
  const auto weights = unpacked(w);
  for (const float value : {1e-45f, 1e-38f, 0x1p-101f, 0x1p-100f, 1e34f}) {
    const std::vector<float> x(96, value);
    std::vector<float> out(65);
    linear(w, row_major(x.data(), {1, 96}), row_major(out.data(), {1, 65}), Epilogue::kStore,
           {Precision::kBF16, scratch_, pool_, backend()});
    for (size_t o = 0; o < out.size(); ++o) {
      double exact = 0, magnitude = 0;
      for (const float b : weights[o]) exact += double{value} * b, magnitude += std::abs(b);
      EXPECT_NEAR(out[o], exact, (value * 0x1p-14 + 0x1p-100) * magnitude) << value;
    }
  }
}

TEST_P(Linear, AddsToWhatIsThere) {
  const auto w = make_matrix(70, 96, type(), pool_);
  for (const int64_t rows : {1, 3, 20}) {
    const Matrix x = random_input(rows, 96);
    Matrix product(rows, 70), sum(rows, 70);
    for (int64_t row = 0; row < rows; ++row) {
      for (float& v : sum.view().row(row)) v = 0.5f;
    }
    linear(w, x.view(), product.view(), Epilogue::kStore,
           {Precision::kBF16, scratch_, pool_, backend()});
    linear(w, x.view(), sum.view(), Epilogue::kAdd, {Precision::kBF16, scratch_, pool_, backend()});
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t i = 0; i < 70; ++i) EXPECT_EQ(sum.at(row, i), product.at(row, i) + 0.5f);
    }
    EXPECT_TRUE(sum.guards_are_intact());
  }
}

TEST_P(Linear, IsTheSameAtAnyNumberOfThreads) {
  // The last: several blocks of rows and of inputs.
  constexpr int64_t kShapes[][2] = {{1, 96}, {3, 96}, {7, 96}, {64, 96}, {300, 288}};
  for (const auto& [rows, num_in] : kShapes) {
    const Matrix x = random_input(rows, num_in);
    std::vector<float> first;
    for (const int threads : {1, 2, 3}) {
      ThreadPool pool(threads, ThreadPool::Pin::kNo);
      LinearScratch scratch;
      const auto w = make_matrix(200, num_in, type(), pool);
      const auto up = make_matrix(200, num_in, type(), pool, /*seed=*/1000);
      Matrix out(rows, 200), gated(rows, 200);
      linear(w, x.view(), out.view(), Epilogue::kStore,
             {Precision::kBF16, scratch, pool, backend()});
      linear_swiglu(w, up, x.view(), gated.view(), {Precision::kBF16, scratch, pool, backend()});
      auto values = out.values;
      values.insert(values.end(), gated.values.begin(), gated.values.end());
      if (first.empty()) first = values;
      EXPECT_EQ(values, first) << "rows=" << rows << " threads=" << threads;
    }
  }
}

TEST_P(Linear, SwigluIsSiluOfTheGateTimesUp) {
  const auto gate = make_matrix(130, 64, type(), pool_);
  const auto up = make_matrix(130, 64, type(), pool_, /*seed=*/1000);
  for (const int64_t rows : {0, 1, 4, 40}) {
    const Matrix x = random_input(rows, 64);
    Matrix g(rows, 130), u(rows, 130), out(rows, 130);
    linear(gate, x.view(), g.view(), Epilogue::kStore,
           {Precision::kBF16, scratch_, pool_, backend()});
    linear(up, x.view(), u.view(), Epilogue::kStore,
           {Precision::kBF16, scratch_, pool_, backend()});
    linear_swiglu(gate, up, x.view(), out.view(), {Precision::kBF16, scratch_, pool_, backend()});
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t i = 0; i < 130; ++i) {
        const double a = g.at(row, i);
        const double expected = a / (1 + std::exp(-a)) * u.at(row, i);
        EXPECT_NEAR(out.at(row, i), expected, 4e-7 * std::abs(expected) + 1e-30);
      }
    }
    EXPECT_TRUE(out.guards_are_intact());
  }
}

TEST_P(Linear, KeepsInfinitiesAndNotANumbersInTheirRow) {
  const auto w = make_matrix(65, 96, type(), pool_);
  for (const int64_t rows : {2, 20}) {
    for (const float bad :
         {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
      Matrix input = random_input(rows, 96);
      input.view()(1, 5) = bad;
      const Matrix& x = input;
      Matrix out(rows, 65);
      linear(w, x.view(), out.view(), Epilogue::kStore,
             {Precision::kBF16, scratch_, pool_, backend()});
      for (int64_t i = 0; i < 65; ++i) {
        EXPECT_TRUE(std::isfinite(out.at(0, i)));
        EXPECT_FALSE(std::isfinite(out.at(1, i)));
        EXPECT_TRUE(std::isinf(bad) || std::isnan(out.at(1, i)));
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(AllBackends, Linear,
                         testing::Combine(testing::ValuesIn(available_backends()),
                                          testing::Values(WeightType::kF32, WeightType::kBF16,
                                                          WeightType::kInt8, WeightType::kInt8x2,
                                                          WeightType::kInt6x2, WeightType::kInt5,
                                                          WeightType::kInt4)),
                         [](const auto& info) {
                           return std::string(backend_name(std::get<0>(info.param))) + "_" +
                                  type_name(std::get<1>(info.param));
                         });

TEST(LinearSwiglu, SaturatesWithoutOverflow) {
  ThreadPool pool(1);
  LinearScratch scratch;
  const auto one = PackedMatrix::pack(
      1, 1, WeightType::kF32, [](int64_t, std::span<float> out) { out[0] = 1; }, pool);
  for (const Backend backend : available_backends()) {
    for (const float x : {-1e30f, -1000.0f, -90.0f, 0.0f, 90.0f, 1e10f}) {
      float out = 0;
      linear_swiglu(one, one, row_major(&x, {1, 1}), row_major(&out, {1, 1}),
                    {Precision::kF32, scratch, pool, backend});
      const double expected = double{x} / (1 + std::exp(-double{x})) * x;
      if (x < -1000) continue;  // any tiny value times 1e30 is as good as another
      EXPECT_NEAR(out, expected, 1e-6 * std::abs(expected) + 1e-30) << x;
    }
  }
}

TEST(LinearSwiglu, TakesMatricesOfTwoTypes) {
  ThreadPool pool(2, ThreadPool::Pin::kNo);
  LinearScratch scratch;
  const auto gate = make_matrix(70, 64, WeightType::kInt8, pool);
  for (const WeightType type : {WeightType::kF32, WeightType::kBF16}) {
    const auto up = make_matrix(70, 64, type, pool);
    for (const int64_t rows : {1, 3, 33}) {
      const Matrix x = random_input(rows, 64);
      Matrix expected(rows, 70);
      linear_swiglu(gate, up, x.view(), expected.view(),
                    {Precision::kF32, scratch, pool, Backend::kReference});
      for (const Backend backend : available_backends()) {
        Matrix out(rows, 70);
        linear_swiglu(gate, up, x.view(), out.view(), {Precision::kBF16, scratch, pool, backend});
        for (int64_t row = 0; row < rows; ++row) {
          for (int64_t i = 0; i < 70; ++i) {
            EXPECT_NEAR(out.at(row, i), expected.at(row, i), 0.1) << backend_name(backend);
          }
        }
      }
    }
  }
}

TEST(LinearArguments, RejectsShapesThatDiffer) {
  ThreadPool pool(1);
  LinearScratch scratch;
  const auto w = make_matrix(4, 8, WeightType::kF32, pool);
  const auto other = make_matrix(5, 8, WeightType::kF32, pool);
  std::vector<float> x(64), out(64);
  const auto run = [&](TensorView<const float, 2> in, TensorView<float, 2> result) {
    linear(w, in, result, Epilogue::kStore, {Precision::kF32, scratch, pool});
  };
  const float* in = x.data();
  EXPECT_THROW(run(row_major(in, {2, 7}), row_major(out.data(), {2, 4})), std::invalid_argument);
  EXPECT_THROW(run(row_major(in, {2, 8}), row_major(out.data(), {2, 5})), std::invalid_argument);
  EXPECT_THROW(run(row_major(in, {2, 8}), row_major(out.data(), {1, 4})), std::invalid_argument);
  EXPECT_THROW(run({in, {2, 8}, {16, 2}}, row_major(out.data(), {2, 4})), std::invalid_argument);
  EXPECT_THROW(run(row_major(in, {2, 8}), {out.data(), {2, 4}, {16, 2}}), std::invalid_argument);
  EXPECT_THROW(linear_swiglu(w, other, row_major(in, {2, 8}), row_major(out.data(), {2, 4}),
                             {Precision::kF32, scratch, pool}),
               std::invalid_argument);
}

}  // namespace
}  // namespace kvquant
