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
    int count;  // may be set before anybody waits
    std::atomic<int> arrived{0}, turns{0};
};

// Helpers that sleep between calls. One call at a time; a forked child makes its own. Work must not
// throw. Where the system gives no more threads a call throws std::system_error before any work is
// done; the helpers that are there serve the next call.
//
// A helper takes a while to wake, and much longer where another program has its processor. So `rouse`
// may be called before a call is ready, and a call that can do with fewer does not wait for all.
class Pool {
public:
    ~Pool() { stop(); }

    // work(number) on each of so many threads.
    template <class Work> void run(int threads, Work&& work) {
        if (threads <= 1) return work(0);
        post(threads, work, false);
        work(0);
        finish(threads - 1);
    }

    // work(number) on this thread, 0, and on those of the others, 1, 2, ..., that wake before `close`,
    // which the work of this thread may call, or before it is done.
    template <class Work> void run_open(int threads, Work&& work) {
        if (threads <= 1) return work(0);
        post(threads, work, true);
        work(0);
        finish(close(threads, std::chrono::microseconds(0)) - 1);
    }

    // From now on nobody joins the call, which waited so long for all threads. How many there are.
    int close(int threads, std::chrono::microseconds patience) {
        if (threads <= 1) return 1;
        const auto until = std::chrono::steady_clock::now() + patience;
        auto joined = [&] { return int(gate.load(std::memory_order_acquire) & JOINED); };
        while (joined() < threads - 1 && std::chrono::steady_clock::now() < until)
            for (int spins = 0; spins < 8 && joined() < threads - 1; ++spins) _mm_pause();
        return 1 + int(gate.fetch_or(CLOSED, std::memory_order_acq_rel) & JOINED);
    }

    // A call with so many threads follows soon.
    void rouse(int threads) {
        if (threads <= 1) return;
        grow(threads - 1);
        {
            std::lock_guard<std::mutex> hold(mutex);
            ++roused;
        }
        wake.notify_all();
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
    template <class Work> void post(int threads, Work& work, bool open) {
        struct Call {
            static void go(void* work, int number) { (*static_cast<std::remove_reference_t<Work>*>(work))(number); }
        };
        grow(threads - 1);
        {
            std::lock_guard<std::mutex> hold(mutex);
            job = &Call::go, argument = &work, wanted = threads - 1, opened = open;
            ++round;
            done.store(0, std::memory_order_relaxed);  // whoever was in the call before is out of it
            gate.store(open ? round * ROUND : CLOSED, std::memory_order_relaxed);
            rounds.store(round, std::memory_order_release);
        }
        wake.notify_all();
    }
    void finish(int others) {
        for (int spins = 0; done.load(std::memory_order_acquire) < others; ++spins) {
            if (spins < 20000) _mm_pause();
            else std::this_thread::yield();
        }
    }
    void grow(int count) {
        while (int(helpers.size()) < count) {
            const int number = int(helpers.size()) + 1;
            helpers.emplace_back([this, number, seen = round] { live(number, seen); });
        }
    }
    // The number of a helper in an open call, 0 if it comes too late: that call's work is gone then.
    int join(uint64_t seen) {
        uint64_t now = gate.load(std::memory_order_relaxed);
        while (now / ROUND == seen && !(now & CLOSED))
            if (gate.compare_exchange_weak(now, now + 1, std::memory_order_acq_rel)) return int(now & JOINED) + 1;
        return 0;
    }
    void live(int number, uint64_t seen) {
        uint64_t heard = 0;  // of `roused`
        for (;;) {
            auto called = [&] { return rounds.load(std::memory_order_acquire) != seen; };
            // the next call often follows at once: look for it a little before sleeping
            for (int spins = 0; spins < 2000 && !called(); ++spins) _mm_pause();
            void (*go)(void*, int);
            void* with;
            bool joins;
            {
                std::unique_lock<std::mutex> hold(mutex);
                wake.wait(hold, [&] { return ending || round != seen || roused != heard; });
                if (ending) return;
                if (round == seen) {  // a call is said to follow
                    heard = roused;
                    hold.unlock();
                    const auto until = std::chrono::steady_clock::now() + AWAKE;
                    while (!called() && std::chrono::steady_clock::now() < until)
                        for (int spins = 0; spins < 8 && !called(); ++spins) _mm_pause();
                    continue;
                }
                seen = round, heard = roused;
                if (number > wanted) continue;
                go = job, with = argument, joins = opened;
            }
            const int own = joins ? join(seen) : number;
            if (own == 0) continue;
            go(with, own);
            done.fetch_add(1, std::memory_order_acq_rel);
        }
    }
    static constexpr std::chrono::microseconds AWAKE{500};
    // of the gate: who joined, whether nobody may any more, and above them the round
    static constexpr uint64_t JOINED = (uint64_t(1) << 16) - 1, CLOSED = JOINED + 1, ROUND = CLOSED * 2;
    std::vector<std::thread> helpers;
    std::mutex mutex;
    std::condition_variable wake;
    void (*job)(void*, int) = nullptr;
    void* argument = nullptr;
    int wanted = 0;
    bool opened = false, ending = false;
    uint64_t round = 0, roused = 0;
    std::atomic<uint64_t> rounds{0}, gate{CLOSED};
    std::atomic<int> done{0};  // who is through with the call
};
