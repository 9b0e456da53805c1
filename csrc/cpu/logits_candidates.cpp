#include "cpu/logits_candidates.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace vlcal {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int64_t kGroups = 64;

bool before(const Candidate& a, const Candidate& b) { return a.dot > b.dot || (a.dot == b.dot && a.index < b.index); }

float just_below(double value) { return std::nextafter(static_cast<float>(value), -kInfinity); }

}  // namespace

CandidateScratch::CandidateScratch(const PackedClasses& classes)
    : threshold(classes.kernels.lanes),
      groups(kGroups * classes.kernels.lanes),
      group_low(classes.kernels.lanes),
      hits(std::min(kChunk, classes.padded) * classes.kernels.lanes),
      query((classes.classes.dim + kLanes - 1) / kLanes * kLanes, 0.0) {}

Candidates::Candidates(const PackedClasses& classes, int64_t k)
    : classes_(classes), k_(k), lanes_(classes.kernels.lanes) {}

void Candidates::start(Features images, int64_t first, int64_t count, const double* norms) {
  images_ = images;
  first_ = first;
  count_ = count;
  for (int64_t l = 0; l < count; ++l) {
    lanes_[l].list.clear();
    lanes_[l].kept = -kInfinity;
    lanes_[l].slack = 2 * classes_.error(norms[l]);
  }
}

void Candidates::see(const float* dots, int64_t first, int64_t rows, const float* largest, CandidateScratch& scratch) {
  thresholds(dots, rows, largest, scratch);
  const int64_t found = classes_.kernels.hits(dots, rows, scratch.threshold.data(), scratch.hits.data());
  for (int64_t h = 0; h < found; ++h) {
    const Hit hit = scratch.hits[h];
    lanes_[hit.lane].list.push_back({dots[hit.row * classes_.kernels.lanes + hit.lane], first + hit.row});
  }
  for (int64_t l = 0; l < count_; ++l) {
    if (largest[l] >= scratch.threshold[l]) prune(l);
  }
}

// A class is worth keeping if it may be as large as the k-th largest: of those seen, or, while there are too few, of
// the largest of a few groups of rows.
void Candidates::thresholds(const float* dots, int64_t rows, const float* largest, CandidateScratch& scratch) const {
  const int64_t lanes = classes_.kernels.lanes;
  const int64_t groups = std::min(rows, std::clamp<int64_t>(4 * k_, 16, kGroups));
  bool grouped = false;
  std::fill(scratch.threshold.begin(), scratch.threshold.end(), kInfinity);
  for (int64_t l = 0; l < count_; ++l) {
    const Lane& lane = lanes_[l];
    double reach = lane.kept;
    if (k_ == 1) {
      reach = std::max(lane.kept, largest[l]);
    } else if (lane.kept == -kInfinity && k_ <= groups) {
      if (!grouped) {
        for (int64_t g = 0; g < groups; ++g) {
          const int64_t begin = g * rows / groups, end = (g + 1) * rows / groups;
          classes_.kernels.extremes(dots + begin * lanes, end - begin, scratch.groups.data() + g * lanes,
                                    scratch.group_low.data());
        }
        grouped = true;
      }
      reach = kth_largest(scratch.groups.data() + l, groups, lanes, scratch.ordered);
    }
    scratch.threshold[l] = reach == -kInfinity ? -kInfinity : just_below(reach - lane.slack);
  }
}

// The k-th largest of `count` values `stride` apart: the largest k so far, in order, and mostly one comparison a value.
float Candidates::kth_largest(const float* values, int64_t count, int64_t stride, std::vector<float>& ordered) const {
  ordered.assign(k_, -kInfinity);
  for (int64_t i = 0; i < count; ++i) {
    const float value = values[i * stride];
    if (value <= ordered[k_ - 1]) continue;
    int64_t at = k_ - 1;
    for (; at > 0 && ordered[at - 1] < value; --at) ordered[at] = ordered[at - 1];
    ordered[at] = value;
  }
  return ordered[k_ - 1];
}

void Candidates::prune(int64_t l) {
  Lane& lane = lanes_[l];
  if (static_cast<int64_t>(lane.list.size()) < k_) return;
  std::nth_element(lane.list.begin(), lane.list.begin() + (k_ - 1), lane.list.end(), before);
  lane.kept = lane.list[k_ - 1].dot;
  const float least = just_below(lane.kept - lane.slack);
  lane.list.erase(std::remove_if(lane.list.begin(), lane.list.end(), [&](const Candidate& c) { return c.dot < least; }),
                  lane.list.end());
}

const std::vector<Candidate>& Candidates::best(int64_t l, CandidateScratch& scratch) {
  Lane& lane = lanes_[l];
  std::sort(lane.list.begin(), lane.list.end(), before);
  Candidate* at = lane.list.data();
  Candidate* const end = at + lane.list.size();
  for (bool converted = false; at < end;) {
    Candidate* next = at + 1;
    while (next < end && (next - 1)->dot - next->dot <= lane.slack) ++next;
    if (next - at > 1) {
      if (!converted) {
        const float* image = images_.row(first_ + l);
        std::copy(image, image + images_.dim, scratch.query.begin());
        converted = true;
      }
      order_exactly(at, next, scratch.query.data());
    }
    at = next;
  }
  lane.list.resize(k_);
  return lane.list;
}

void Candidates::order_exactly(Candidate* begin, Candidate* end, const double* query) const {
  const auto negated_dot = exact_costs<float>().negated_dot;
  std::vector<std::pair<double, Candidate>> exact;
  exact.reserve(end - begin);
  for (Candidate* c = begin; c < end; ++c) {
    exact.push_back({negated_dot(query, classes_.classes.row(c->index), images_.dim), *c});
  }
  std::sort(exact.begin(), exact.end(), [](const auto& a, const auto& b) {
    return a.first < b.first || (a.first == b.first && a.second.index < b.second.index);
  });
  for (const auto& item : exact) *begin++ = item.second;
}

}  // namespace vlcal
