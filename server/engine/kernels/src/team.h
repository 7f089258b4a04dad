// The threads of a step: how they share work, and how they wait for each other.
//
// They stay in one parallel region for all layers, so the waiting is our own: OpenMP's barrier goes to sleep at once
// where the process has more OpenMP threads than cores, and else spins for milliseconds while another thread that
// could run wants the core.

#pragma once

#include <immintrin.h>
#include <omp.h>

#include <atomic>
#include <vector>

namespace secateur {

// Pieces of work that lie one after the other and belong to a thread. It takes them from the front, so that memory is
// read straight through; a thread that has nothing left takes from the back.
struct alignas(64) Stretch {
  std::atomic<int> claimed{0};  // pieces that somebody has taken, or wanted to
  std::atomic<int> stolen{0};   // those from the back
};

// What the threads of one parallel region have in common.
class Meeting {
 public:
  explicit Meeting(int threads) : stretches_(threads) {}

  Stretch& stretch(int thread) { return stretches_[thread]; }

  // Returns once `threads` threads have called it. All stretches are whole again then.
  void wait(int threads) {
    constexpr int kSpins = 2000;  // some 20 microseconds, more than threads are apart unless one has lost its core
    const int round = round_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == threads - 1) {
      for (Stretch& stretch : stretches_) {
        stretch.claimed.store(0, std::memory_order_relaxed);
        stretch.stolen.store(0, std::memory_order_relaxed);
      }
      arrived_.store(0, std::memory_order_relaxed);
      round_.store(round + 1, std::memory_order_release);
      round_.notify_all();
      return;
    }
    for (int spin = 0; spin < kSpins; ++spin) {
      if (round_.load(std::memory_order_acquire) != round) return;
      _mm_pause();
    }
    round_.wait(round, std::memory_order_acquire);  // leaves the core to a thread that is being waited for
  }

 private:
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<int> round_{0};
  std::vector<Stretch> stretches_;
};

// One thread of a parallel region. Every thread calls the same functions in the same order.
struct Team {
  int id;
  int count;
  Meeting* meeting;

  static Team current(Meeting& meeting) { return {omp_get_thread_num(), omp_get_num_threads(), &meeting}; }

  // Waits until every thread has come here.
  void barrier() const { meeting->wait(count); }

  // This thread's contiguous share of `total` pieces of work.
  int begin(long total) const { return begin_of(id, total); }
  int end(long total) const { return begin_of(id + 1, total); }

  // Calls `work` for each of the pieces [0, total) on some thread; `begin_of(thread)` is where a thread's own stretch
  // begins. Between two barriers at most once.
  template <class Begin, class Work>
  void share(Begin begin_of, Work work) const {
    for (int turn = 0; turn < count; ++turn) {
      const int owner = (id + turn) % count;
      Stretch& stretch = meeting->stretch(owner);
      const int begin = begin_of(owner), end = begin_of(owner + 1);
      for (int next = begin; stretch.claimed.load(std::memory_order_relaxed) < end - begin &&
                             stretch.claimed.fetch_add(1, std::memory_order_relaxed) < end - begin;
           ++next)
        work(turn == 0 ? next : end - 1 - stretch.stolen.fetch_add(1, std::memory_order_relaxed));
    }
  }

  // The same in equal stretches.
  template <class Work>
  void share_evenly(long total, Work work) const {
    share([&](int thread) { return begin_of(thread, total); }, work);
  }

 private:
  int begin_of(int thread, long total) const { return static_cast<int>(total * thread / count); }
};

}  // namespace secateur
