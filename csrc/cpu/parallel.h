// A loop over tasks on a few threads. No OpenMP: its runtime would be a second one beside torch's.
#pragma once
#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace vlcal {

// What the workers of one loop share. It outlives the loop, because a worker that never got a core before the others had
// done everything may look at it later; such a worker finds no task and never touches the body.
struct Loop {
  explicit Loop(int64_t tasks) : tasks(tasks) {}

  template <class Body>
  void work(Body& body, int worker) {
    running.fetch_add(1);
    for (int64_t task; (task = next.fetch_add(1)) < tasks;) {
      try {
        body(task, worker);
      } catch (...) {
        std::lock_guard<std::mutex> guard(mutex);
        if (!failure) failure = std::current_exception();
        next.store(tasks);
      }
    }
    std::lock_guard<std::mutex> guard(mutex);
    if (running.fetch_sub(1) == 1) idle.notify_all();
  }

  void wait() {
    std::unique_lock<std::mutex> guard(mutex);
    idle.wait(guard, [this] { return running.load() == 0; });
  }

  const int64_t tasks;
  std::atomic<int64_t> next{0};
  std::atomic<int> running{0};
  std::mutex mutex;
  std::condition_variable idle;
  std::exception_ptr failure;
};

// Calls body(task, worker) once for every task in 0..tasks-1; worker is in 0..threads-1. Tasks are handed out in order;
// which worker gets which is not fixed, so results must not depend on it. The first exception is rethrown here.
template <class Body>
void parallel_for(int64_t tasks, int threads, Body&& body) {
  const int workers = static_cast<int>(std::min<int64_t>(std::max(threads, 1), tasks));
  if (workers <= 1) {
    for (int64_t task = 0; task < tasks; ++task) body(task, 0);
    return;
  }
  const auto loop = std::make_shared<Loop>(tasks);
  try {
    for (int worker = 1; worker < workers; ++worker) {
      std::thread([loop, &body, worker] { loop->work(body, worker); }).detach();
    }
  } catch (const std::system_error&) {
    // the system gives no more threads: those there are do the work
  }
  loop->work(body, 0);
  // here every task has been handed out: whoever still runs one is counted, nobody else will touch the body
  loop->wait();
  if (loop->failure) std::rethrow_exception(loop->failure);
}

}  // namespace vlcal
