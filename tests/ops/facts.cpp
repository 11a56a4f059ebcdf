// What csrc says of the ops' fields and of the criteria, as JSON; test_fields.py compares.
#include <cstdio>
#include <initializer_list>

#include "core/decide.h"
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
      "\"MEASURES\": %ld, \"MAX_HISTORY\": %ld, \"PIECE\": %ld, \"SUMS\": %ld}, ",
      static_cast<long>(kRowScalars), static_cast<long>(kOutputs), static_cast<long>(kWeights),
      static_cast<long>(kMeasures), static_cast<long>(kMaxHistory), static_cast<long>(kPiece),
      static_cast<long>(kSums));
  std::printf("\"criteria\": [");
  for (int64_t code = 0; code < kCriteria; ++code) {
    if (code > 0) std::printf(", ");
    print_criterion(code);
  }
  std::printf("]}\n");
}
