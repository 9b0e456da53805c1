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

// Images on their way at once where classes are packed a window at a time. They are packed again for each such block, at
// a thousandth of the cost of its products.
constexpr int64_t kBlock = 4096;

// For each panel: start(first image, images, norms), see(dots [rows][lanes], first class, rows, scratch) for every chunk,
// then finish(dots, scratch), where `dots` holds all classes if `whole`. Panel(classes, args...) is made once per place
// of a panel, Panel::Scratch(classes, args...) once per thread; `other` (or null) is packed along with the classes.
// Returns the first image that is not finite or may overflow, or -1; results of its block are not all made.
template <class Panel, class Factor, class... Args>
int64_t walk(PackedClasses& classes, PackedClasses* other, Features images, bool whole, Factor&& factor, int threads,
             const Args&... args) {
  const int64_t lanes = classes.kernels.lanes, dim = images.dim, size = dim * lanes;
  const int64_t height = whole ? classes.padded : std::min(kChunk, classes.padded);
  const int64_t panels = (images.count + lanes - 1) / lanes, each = panels_per_task(panels, threads);
  // where one window holds all classes, a task takes its panels through them, and the next one has their places
  const bool once = classes.window >= classes.padded;
  const int64_t block = once ? panels : std::min(panels, kBlock / lanes / each * each);
  const int64_t places = once ? std::max(threads, 1) * each : (block + each - 1) / each * each;
  const AlignedFloats packed = aligned_floats(places * size);
  std::vector<std::unique_ptr<Panel>> states(places);
  struct Worker {
    AlignedFloats dots;
    std::vector<double> norms;
    std::unique_ptr<typename Panel::Scratch> scratch;
    int64_t bad = -1;
  };
  std::vector<Worker> workers(std::max(threads, 1));

  const auto start = [&](int64_t first, int64_t place, Worker& mine) {
    const int64_t valid = std::min(lanes, images.count - first);
    pack_panel(classes.kernels, images, first, packed.get() + place * size, mine.norms.data());
    for (int64_t l = 0; l < valid; ++l) {
      if (!may_overflow(factor(first + l), mine.norms[l], classes.largest)) continue;
      if (mine.bad < 0 || first + l < mine.bad) mine.bad = first + l;
      return false;
    }
    if (!states[place]) states[place] = std::make_unique<Panel>(classes, args...);
    states[place]->start(first, valid, mine.norms.data());
    return true;
  };
  const auto visit = [&](int64_t begin, int64_t end, int64_t here, int64_t place, Worker& mine) {
    for (int64_t first = begin; first < end; first += kChunk) {
      const int64_t rows = std::min(kChunk, classes.classes.count - first);
      float* dots = mine.dots.get() + (whole ? first * lanes : 0);
      classes.dots(packed.get() + place * size, static_cast<int>(here), first, std::min(kChunk, end - first), dots,
                   height * lanes);
      for (int64_t p = 0; p < here; ++p) states[place + p]->see(dots + p * height * lanes, first, rows, *mine.scratch);
    }
  };

  for (int64_t from = 0; from < panels; from += block) {
    const int64_t until = std::min(panels, from + block), tasks = (until - from + each - 1) / each;
    for (int64_t begin = 0; begin < classes.padded; begin += classes.window) {
      const int64_t end = std::min(classes.padded, begin + classes.window);
      classes.hold(begin, threads);
      if (other) other->hold(begin, threads);
      parallel_for(tasks, threads, [&](int64_t task, int id) {
        Worker& mine = workers[id];
        if (!mine.dots) {
          mine.dots = aligned_floats(each * height * lanes);
          mine.norms.resize(lanes);
          mine.scratch = std::make_unique<typename Panel::Scratch>(classes, args...);
        }
        const int64_t panel = from + task * each, here = std::min(each, until - panel);
        const int64_t place = (once ? id : task) * each;
        for (int64_t p = 0; begin == 0 && p < here; ++p) {
          if (!start((panel + p) * lanes, place + p, mine)) return;
        }
        visit(begin, end, here, place, mine);
        for (int64_t p = 0; end == classes.padded && p < here; ++p) {
          states[place + p]->finish(mine.dots.get() + p * height * lanes, *mine.scratch);
        }
      });
      int64_t bad = -1;
      for (const Worker& worker : workers) {
        if (worker.bad >= 0 && (bad < 0 || worker.bad < bad)) bad = worker.bad;
      }
      if (bad >= 0) return bad;
    }
  }
  return -1;
}

}  // namespace vlcal
