// The standard normal distribution.
#pragma once

namespace kvquant {

double normal_cdf(double x);

// The inverse of normal_cdf for p in (0, 1), to the last bits, by bisection: for a few calls.
double normal_quantile(double p);

}  // namespace kvquant
