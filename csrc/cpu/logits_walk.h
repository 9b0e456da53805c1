// The walk of images through the classes: blocks of panels, each against one chunk of classes after the other.
#pragma once
#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "cpu/logits_dots.h"
#include "cpu/parallel.h"

namespace vlcal {

// A tile of classes is read from memory once per block, so more panels need less bandwidth; four fit the second cache.
constexpr int64_t kPanels = 4;

// Threads worth starting for so many multiplications: each should have work for about 0.1 ms.
inline int useful_threads(int threads, int64_t images, int64_t classes, int64_t dim) {
  constexpr double kEach = 4e6;
  const double work = static_cast<double>(images) * classes * dim;
  return static_cast<int>(std::clamp<double>(work / kEach, 1, std::max(threads, 1)));
}

inline bool may_overflow(double factor, double norm, double largest) {
  return !(std::max(1.0, factor) * norm * largest < 1e37);
}

// Panels a task takes, such that every thread has a few tasks.
inline int64_t panels_per_task(int64_t panels, int threads) {
  return std::clamp<int64_t>(panels / (2 * std::max(threads, 1)), 1, kPanels);
}

// For each panel: start(first image, images, norms), see(dots [rows][lanes], first class, rows) for every chunk, then
// finish(dots), where `dots` holds all classes if `whole`. Panel(classes, args...) is made once per thread and place.
// Returns the first image that is not finite or may overflow, or -1; results of a task with such an image are not made.
template <class Panel, class Factor, class... Args>
int64_t walk(const PackedClasses& classes, Features images, bool whole, Factor&& factor, int threads,
             const Args&... args) {
  const int64_t lanes = classes.kernels.lanes, count = classes.classes.count, dim = images.dim;
  const int64_t panels = (images.count + lanes - 1) / lanes;
  const int64_t each = panels_per_task(panels, threads), tasks = (panels + each - 1) / each;
  const int64_t height = whole ? classes.padded : std::min(kChunk, classes.padded);
  struct Worker {
    AlignedFloats panel, dots;
    std::vector<double> norms;
    std::vector<std::unique_ptr<Panel>> states;
    int64_t bad = -1;
  };
  std::vector<Worker> workers(std::max(threads, 1));
  parallel_for(tasks, threads, [&](int64_t task, int id) {
    Worker& mine = workers[id];
    if (!mine.panel) {
      mine.panel = aligned_floats(each * dim * lanes);
      mine.dots = aligned_floats(each * height * lanes);
      mine.norms.resize(lanes);
      for (int64_t p = 0; p < each; ++p) mine.states.push_back(std::make_unique<Panel>(classes, args...));
    }
    const int64_t here = std::min(each, panels - task * each);
    for (int64_t p = 0; p < here; ++p) {
      const int64_t first = (task * each + p) * lanes, valid = std::min(lanes, images.count - first);
      pack_panel(classes.kernels, images, first, mine.panel.get() + p * dim * lanes, mine.norms.data());
      for (int64_t l = 0; l < valid; ++l) {
        if (!may_overflow(factor(first + l), mine.norms[l], classes.largest)) continue;
        if (mine.bad < 0 || first + l < mine.bad) mine.bad = first + l;
        return;
      }
      mine.states[p]->start(first, valid, mine.norms.data());
    }
    for (int64_t first = 0; first < count; first += kChunk) {
      const int64_t rows = std::min(kChunk, count - first), at = whole ? first * lanes : 0;
      const int64_t filled = std::min(kChunk, classes.padded - first);
      classes.dots(mine.panel.get(), static_cast<int>(here), first, filled, mine.dots.get() + at, height * lanes);
      for (int64_t p = 0; p < here; ++p) mine.states[p]->see(mine.dots.get() + at + p * height * lanes, first, rows);
    }
    for (int64_t p = 0; p < here; ++p) mine.states[p]->finish(mine.dots.get() + p * height * lanes);
  });
  int64_t bad = -1;
  for (const Worker& worker : workers) {
    if (worker.bad >= 0 && (bad < 0 || worker.bad < bad)) bad = worker.bad;
  }
  return bad;
}

}  // namespace vlcal
