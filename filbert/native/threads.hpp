// A barrier, and helpers that sleep between calls. Part of encoder.cpp.
#pragma once

// A barrier for few threads that all run: it spins, and yields if the wait gets long.
struct Barrier {
    explicit Barrier(int count) : count(count) {}
    void wait() {
        if (count == 1) return;
        const int turn = turns.load(std::memory_order_relaxed);
        if (arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == count) {
            arrived.store(0, std::memory_order_relaxed);
            turns.store(turn + 1, std::memory_order_release);
            return;
        }
        for (int spins = 0; turns.load(std::memory_order_acquire) == turn; ++spins) {
            if (spins < 4000) _mm_pause();
            else std::this_thread::yield();
        }
    }
    const int count;
    std::atomic<int> arrived{0}, turns{0};
};

// Helpers that sleep between calls. One call at a time; a forked child makes its own. Work must not
// throw. Where the system gives no more threads `run` throws std::system_error before any work is
// done; the helpers that are there serve the next call.
class Pool {
public:
    ~Pool() { stop(); }
    template <class Work> void run(int threads, Work&& work) {
        if (threads > 1) grow(threads - 1);
        if (threads <= 1) {
            work(0);
            return;
        }
        struct Call {
            static void go(void* work, int number) { (*static_cast<std::remove_reference_t<Work>*>(work))(number); }
        };
        {
            std::lock_guard<std::mutex> hold(mutex);
            job = &Call::go, argument = &work, wanted = threads - 1, left = threads - 1;
            ++round;
            rounds.store(round, std::memory_order_release);
        }
        wake.notify_all();
        work(0);
        for (int spins = 0; left.load(std::memory_order_acquire) > 0; ++spins) {
            if (spins < 20000) _mm_pause();
            else std::this_thread::yield();
        }
    }
    void stop() {
        {
            std::lock_guard<std::mutex> hold(mutex);
            ending = true;
        }
        wake.notify_all();
        for (auto& helper : helpers) helper.join();
        helpers.clear();
        ending = false;
    }

private:
    void grow(int count) {
        while (int(helpers.size()) < count) {
            const int number = int(helpers.size()) + 1;
            helpers.emplace_back([this, number, seen = round] { live(number, seen); });
        }
    }
    void live(int number, uint64_t seen) {
        for (;;) {
            // the next call often follows at once: look for it a little before sleeping
            for (int spins = 0; spins < 2000 && rounds.load(std::memory_order_acquire) == seen; ++spins) _mm_pause();
            void (*go)(void*, int);
            void* with;
            {
                std::unique_lock<std::mutex> hold(mutex);
                wake.wait(hold, [&] { return ending || round != seen; });
                if (ending) return;
                seen = round;
                if (number > wanted) continue;
                go = job, with = argument;
            }
            go(with, number);
            left.fetch_sub(1, std::memory_order_acq_rel);
        }
    }
    std::vector<std::thread> helpers;
    std::mutex mutex;
    std::condition_variable wake;
    void (*job)(void*, int) = nullptr;
    void* argument = nullptr;
    int wanted = 0;
    uint64_t round = 0;
    std::atomic<uint64_t> rounds{0};
    std::atomic<int> left{0};
    bool ending = false;
};
