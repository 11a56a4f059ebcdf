// CPU `step` and `advance`.
//
// Computes: guidance, conversion, update, history, the sums of the criterion, the decision, the
// next network input and timestep of every sample that does not wait for the network.
// Work: chunks of kChunk elements over torch's threads; a chunk runs in tiles that stay in the L1
// cache, one short loop per line of core/step.h. Sums are kept per chunk and added in chunk order:
// a result depends neither on the number of threads nor on the rest of the batch.
// Bytes per element: latents 4 read (12 for third_order) and 4 written, each kept history entry 4
// read and one 4 written, model output and model input once each in their own dtype (twice with
// guidance); each kept output that a fill uses 4 read, and one 4 written at a refresh.
#include <algorithm>
#include <vector>

#include "cpu/tile.h"
#include "op/registration.h"

namespace ak {
namespace {

// Adds a sample's partial sums in chunk order.
Sums add_up(const Args& a, const Sample& s, const Partial* partials, int64_t chunks) {
  Sums sums = {0, 0, s.at.measures[0], s.at.measures[1], static_cast<double>(a.N), 0, 0};
  for (int64_t c = 0; c < chunks; ++c) {
    sums.third += partials[c].third;
    sums.first += partials[c].first;
    sums.defect += partials[c].defect;
  }
  return sums;
}

std::vector<Sample> moving_samples(const Args& a, bool fresh) {
  std::vector<Sample> samples;
  for (int64_t b = 0; b < a.B; ++b) {
    const Place at = place_of(a, b);
    STD_TORCH_CHECK(is_possible(at),
                    "progress must not be negative and refreshes not lie ahead, "
                    "got step ",
                    at.index, ", run ", at.run, ", nfe ", at.nfe, ", refreshes at ", at.last_call,
                    " and ", at.call_before);
    if (!moves(a, at, fresh)) continue;
    samples.push_back(locate(a, b));
    STD_TORCH_CHECK(!a.rule.batch_wide || samples.back().step == samples.front().step,
                    "batch_wide needs all samples at one step, got steps ", samples.front().step,
                    " and ", samples.back().step);
  }
  return samples;
}

// One step of every sample that does not wait; true while some sample can go on without the
// network.
bool step_once(const Args& a, bool fresh) {
  std::vector<Sample> samples = moving_samples(a, fresh);
  const int64_t chunks = (a.N + kChunk - 1) / kChunk;
  const int64_t tasks = chunks * static_cast<int64_t>(samples.size());
  std::vector<Partial> partials(tasks);
  const auto work = [&](int64_t from, int64_t to) {
    for (int64_t t = from; t < to; ++t) {
      const int64_t begin = t % chunks * kChunk;
      chunk(a, samples[t / chunks], begin, std::min(begin + kChunk, a.N), &partials[t]);
    }
  };
  if (tasks > 1)
    torch::stable::parallel_for(0, tasks, 1, work);
  else
    work(0, tasks);

  std::vector<Sums> sums;
  Sums all = {};
  for (size_t j = 0; j < samples.size(); ++j) {
    sums.push_back(add_up(a, samples[j], partials.data() + j * chunks, chunks));
    add(sums[j], &all);
  }
  bool more = false;
  for (size_t j = 0; j < samples.size(); ++j) {
    Place* at = &samples[j].at;
    Besides r = besides(a, *at);
    conclude(a, at, sums[j].first, a.rule.batch_wide ? all : sums[j], &r);
    save(a, *at, r);
    more = more || at->run > 0;
  }
  return more;
}

Args checked(const Tensors& t, const Rule& rule, const Condition& condition) {
  STD_TORCH_CHECK(!condition, "condition needs the CUDA library");
  return check(t, rule, condition);
}

void step_cpu(const Tensors& t, const Rule& rule, const Condition& condition, bool fresh) {
  step_once(checked(t, rule, condition), fresh);
}

void advance_cpu(const Tensors& t, const Rule& rule, const Condition& condition) {
  const Args a = checked(t, rule, condition);
  for (bool fresh = true, more = true; more; fresh = false) more = step_once(a, fresh);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(adaptive_kernels, CPU, m) {
  m.impl("step", TORCH_BOX(&step<step_cpu>));
  m.impl("advance", TORCH_BOX(&advance<advance_cpu>));
}

}  // namespace ak
