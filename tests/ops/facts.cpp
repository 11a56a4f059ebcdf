// What csrc says of the ops' fields and of the criteria, as JSON; test_fields.py compares.
#include <cstdio>
#include <initializer_list>

#include "core/decide.h"
#include "core/defect.h"
#include "op/fields.h"

using namespace ak;

namespace {

void print(const char* name, const char* type, bool written, bool optional,
           std::initializer_list<int64_t> shape) {
  std::printf("[\"%s\", \"%s\", %d, %d, [", name, type, written, optional);
  const char* comma = "";
  for (int64_t size : shape) {
    std::printf("%s%ld", comma, static_cast<long>(size));
    comma = ", ";
  }
  std::printf("]]");
}

void print_fields() {
  const int64_t R = 101, B = 103, N = 107, K = 109, M = 113, T = 127, P = 131, G = 137, Q = 139;
  const char* comma = "";
#define AK_FIELD(name, type, written, optional, ...)     \
  std::printf("%s", comma);                              \
  print(#name, #type, written, optional, {__VA_ARGS__}); \
  comma = ", ";
  AK_FIELDS(AK_FIELD)
#undef AK_FIELD
}

// Whether the network is called though every measure says that it need not be.
bool is_forced(const Rule& rule, int64_t whole, int64_t skipped) {
  const Sums sums = {0, 0, 1, 0, 1, 0, 0};
  const int64_t step = whole * rule.stages - 1, run = skipped * rule.stages + 1;
  return decide(rule, step, run, sums, 1.0).refresh;
}

void print_criterion(int64_t code) {
  std::printf("[%ld, %d, %d, %d, %d, [", static_cast<long>(least_warmup(code)), needs_third(code),
              needs_first(code), needs_defect(code), needs_table(code));
  const char* comma = "";
  for (int64_t max_skip = 0; max_skip < 12; ++max_skip)
    for (int64_t stages = 1; stages < 4; ++stages)
      for (int64_t steps : {1, 7, 50}) {
        const Rule rule = {code, max_skip, least_warmup(code), stages, false};
        std::printf("%s[%ld", comma, static_cast<long>(longest_run(rule, steps)));
        for (int64_t whole = 1; whole < 24; ++whole)
          for (int64_t skipped = 0; skipped < whole && skipped < 14; ++skipped)
            std::printf(", %d", is_forced(rule, whole, skipped));
        std::printf("]");
        comma = ", ";
      }
  std::printf("]]");
}

// What the rule defect makes of a refresh, from a line of the entries (weights, rule table), the
// measures before it, the mean square of the defect and the largest variance: the measures after
// it, and the error predicted then.
void print_defect(const char* comma, const float (&entry)[kWeights],
                  const float (&table)[kPredictors], const double (&before)[kMeasures],
                  double square, double most) {
  const Weights w = {{entry[0], entry[1], entry[2]}, {}, entry[6], entry[7]};
  double m[kMeasures];
  Estimate now = estimate_at(before);
  const double fill = noise_of_fill(w, now);
  measure_defect(w.spread, fill + w.noise, square, most, &now);
  keep_noise(w, fill, &now);
  now.share = share_of(ahead_of(w, now), now);
  save(now, m);
  std::printf("%s[", comma);
  for (double value : m) std::printf("\"%a\", ", value);
  std::printf("\"%a\"]", predict_run(table[0], noise_of_run(table, now), now));
}

void print_defects() {
  const char* comma = "";
  uint32_t state = 1;
  const auto any = [&] {
    return static_cast<double>((state = state * 1664525u + 1013904223u) >> 8) / (1 << 24);
  };
  for (int n = 0; n < 4000; ++n) {
    const float f = static_cast<float>(any());
    float entry[kWeights] = {1.0f + f,
                             n % 7 ? -f : 0.0f,
                             n % 7 ? 0.0f : -f,
                             0,
                             0,
                             0,
                             static_cast<float>(n % 11 ? 1.0 / (0.01 + any()) : INFINITY),
                             static_cast<float>(any() * 2)};
    float table[kPredictors];
    for (float& value : table) value = static_cast<float>(any() * 0.1 - 0.02);
    double before[kMeasures] = {n % 5 ? any() * 0.1 : n % 2 ? INFINITY : NAN,
                                n % 3 ? any() * 1e-4 : 0.0,
                                any(),
                                any(),
                                any(),
                                n % 4 ? std::floor(any() * kShares) / kShares : 0.0};
    const double square = n % 13 ? any() * 1e-3 : n % 2 ? NAN : INFINITY;
    const double most = n % 6 ? any() * 1e-4 : 0.0;
    std::printf("%s[", comma);
    for (float value : entry) std::printf("\"%a\", ", static_cast<double>(value));
    for (float value : table) std::printf("\"%a\", ", static_cast<double>(value));
    for (double value : before) std::printf("\"%a\", ", value);
    std::printf("\"%a\", \"%a\"", square, most);
    print_defect(", ", entry, table, before, square, most);
    std::printf("]");
    comma = ", ";
  }
}

}  // namespace

int main() {
  std::printf("{\"fields\": [");
  print_fields();
  std::printf(
      "], \"progress\": {\"index\": %d, \"run\": %d, \"nfe\": %d, \"last_call\": %d, "
      "\"call_before\": %d}, ",
      kIndex, kRun, kNfe, kLastCall, kCallBefore);
  std::printf(
      "\"constants\": {\"SCALARS\": %ld, \"OUTPUTS\": %ld, \"WEIGHTS\": %ld, "
      "\"MEASURES\": %ld, \"PREDICTORS\": %ld, \"MAX_HISTORY\": %ld, \"PIECE\": %ld, "
      "\"SUMS\": %ld}, ",
      static_cast<long>(kRowScalars), static_cast<long>(kOutputs), static_cast<long>(kWeights),
      static_cast<long>(kMeasures), static_cast<long>(kPredictors), static_cast<long>(kMaxHistory),
      static_cast<long>(kPiece), static_cast<long>(kSums));
  std::printf("\"criteria\": [");
  for (int64_t code = 0; code < kCriteria; ++code) {
    if (code > 0) std::printf(", ");
    print_criterion(code);
  }
  std::printf("], \"noise\": [\"%a\", \"%a\", \"%a\", \"%a\", \"%a\"], \"defects\": [", kDoubt,
              kStands, kNoiseCounts, kGrows, kShares);
  print_defects();
  std::printf("]}\n");
}
