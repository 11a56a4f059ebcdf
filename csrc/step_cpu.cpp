// CPU `step` and `advance`.
//
// Computes: guidance, conversion, update, history, the sums of the criterion, the decision, the
// next network input and timestep of every sample that does not wait for the network.
// Work: chunks of kChunk elements over torch's threads; a chunk runs in tiles that stay in the L1
// cache, one short loop per line of step.h. Sums are kept per chunk and added in chunk order, so a
// result depends neither on the number of threads nor on the rest of the batch.
// Bytes per element: latents 4 read (12 for third_order) and 4 written, each kept history entry 4
// read and one 4 written, model output and model input once each in their own dtype (twice with
// guidance); each kept output that a fill uses 4 read, and one 4 written at a refresh.
#include <algorithm>
#include <vector>

#include "step_ops.h"
#include "tile.h"

namespace ak {
namespace {

// Writes a sample's decision and moves it to its next step.
void conclude(const Args& a, const Sample& s, const Decision& decision) {
  const int64_t b = s.b, next = s.step + 1;
  a.index[b] = static_cast<int32_t>(next);
  if (next == a.T) {
    a.run[b] = 0;
    return;
  }
  a.refreshed[next * a.B + b] = decision.refresh;
  a.score[next * a.B + b] = decision.score;
  if (decision.refresh) a.run[b] = 0;
  set_timestep(a, b, s.row.timestep);
}

void decide_all(const Args& a, const std::vector<Sample>& samples, std::vector<Sums> sums) {
  if (a.batch_wide) {
    Sums all = {};
    for (const Sums& one : sums) {
      all.third += one.third;
      all.first += one.first;
      all.first_1 += one.first_1;
      all.first_2 += one.first_2;
      all.elements += one.elements;
      all.defect += one.defect;
    }
    std::fill(sums.begin(), sums.end(), all);
  }
  for (size_t j = 0; j < samples.size(); ++j) {
    const Sample& s = samples[j];
    if (s.fresh && s.boundary && needs_defect(a.rule.criterion))
      a.norms[2 * s.b] = std::sqrt(sums[j].defect / sums[j].elements) * s.weights.spread;
    const int64_t skips = (a.run[s.b] - 1) / a.rule.stages + 1;
    if (s.step + 1 < a.T) sums[j].predicted = predict(a, s.b, s.step + 1, skips);
    conclude(a, s, decide(a.rule, s.step, a.run[s.b], sums[j], a.threshold[s.b]));
  }
}

// One step of every sample that does not wait; true while some sample can go on without the
// network.
bool step_once(const Args& a, bool fresh) {
  std::vector<Sample> samples;
  for (int64_t b = 0; b < a.B; ++b) {
    STD_TORCH_CHECK(is_progress(a, b),
                    "progress must not be negative and refreshes not lie ahead, "
                    "got step ",
                    a.index[b], ", run ", a.run[b], ", nfe ", a.nfe[b], ", refreshes at ",
                    a.newest[b], " and ", a.before[b]);
    if (a.index[b] >= a.T || (a.run[b] == 0 && !fresh)) continue;
    samples.push_back(locate(a, b));
    STD_TORCH_CHECK(!a.batch_wide || samples.back().step == samples.front().step,
                    "batch_wide needs all samples at one step, got steps ", samples.front().step,
                    " and ", samples.back().step);
  }
  for (const Sample& s : samples) {
    if (s.fresh) count_refresh(a, s.b);
    a.run[s.b] += 1;
  }
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
  for (size_t j = 0; j < samples.size(); ++j) {
    const Sample& s = samples[j];
    double* norms = a.norms + 2 * s.b;
    Sums one = {0, 0, norms[0], norms[1], static_cast<double>(a.N), 0, 0};
    for (int64_t c = 0; c < chunks; ++c) {
      one.third += partials[j * chunks + c].third;
      one.first += partials[j * chunks + c].first;
      one.defect += partials[j * chunks + c].defect;
    }
    if (s.first) {
      norms[1] = norms[0];
      norms[0] = one.first;
    }
    sums.push_back(one);
  }
  decide_all(a, samples, std::move(sums));
  return std::any_of(samples.begin(), samples.end(),
                     [&](const Sample& s) { return a.run[s.b] > 0; });
}

void step_cpu(const Tensors& t, const Rule& rule, bool batch_wide, bool fresh) {
  step_once(check(t, rule, batch_wide), fresh);
}

void advance_cpu(const Tensors& t, const Rule& rule, bool batch_wide) {
  const Args a = check(t, rule, batch_wide);
  for (bool fresh = true, more = true; more; fresh = false) more = step_once(a, fresh);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(adaptive_kernels, CPU, m) {
  m.impl("step", TORCH_BOX(&step<step_cpu>));
  m.impl("advance", TORCH_BOX(&advance<advance_cpu>));
}

}  // namespace ak
