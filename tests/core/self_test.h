// What the self-tests of the core have in common.
#pragma once

#include <cmath>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

namespace {

using Row = std::vector<double>;

int failures = 0;

void expect(bool holds, const std::string& what, double value) {
  std::printf("%s %s (%g)\n", holds ? "ok  " : "FAIL", what.c_str(), value);
  failures += !holds;
}

// Keeps the greatest deviation; a NaN is greater than all of them.
void note(double& worst, double deviation) {
  if (!(deviation <= worst)) worst = std::isnan(deviation) ? INFINITY : deviation;
}

std::mt19937 generator(7);

std::vector<float> normal(size_t count, double deviation, double mean = 0) {
  std::normal_distribution<float> draw(static_cast<float>(mean), static_cast<float>(deviation));
  std::vector<float> values(count);
  for (float& v : values) v = draw(generator);
  return values;
}

}  // namespace
