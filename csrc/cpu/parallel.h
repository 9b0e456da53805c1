// A loop over tasks on a few threads. No OpenMP: its runtime would be a second one beside torch's.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <thread>
#include <vector>

namespace vlcal {

// Calls body(task, worker) once for every task in 0..tasks-1; worker is in 0..threads-1. Tasks are handed out in order;
// which worker gets which is not fixed, so results must not depend on it. The first exception is rethrown here.
template <class Body>
void parallel_for(int64_t tasks, int threads, Body&& body) {
  const int workers = static_cast<int>(std::min<int64_t>(std::max(threads, 1), tasks));
  if (workers <= 1) {
    for (int64_t task = 0; task < tasks; ++task) body(task, 0);
    return;
  }
  std::atomic<int64_t> next{0};
  std::vector<std::exception_ptr> failures(workers);
  auto run = [&](int worker) {
    try {
      for (int64_t task; (task = next.fetch_add(1)) < tasks;) body(task, worker);
    } catch (...) {
      failures[worker] = std::current_exception();
      next.store(tasks);
    }
  };
  std::vector<std::thread> pool;
  pool.reserve(workers - 1);
  for (int worker = 1; worker < workers; ++worker) pool.emplace_back(run, worker);
  run(0);
  for (auto& thread : pool) thread.join();
  for (auto& failure : failures) {
    if (failure) std::rethrow_exception(failure);
  }
}

}  // namespace vlcal
