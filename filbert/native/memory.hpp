// Aligned memory for weights and activations. Part of encoder.cpp.
#pragma once

// Aligned memory in huge pages where the system has them; zeroed.
struct Memory {
    char* data = nullptr;
    size_t size = 0;
    Memory() = default;
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;
    ~Memory() { release(); }
#if defined(__SANITIZE_ADDRESS__)  // exact, so that a step beyond is seen
    void release() {
        std::free(data);
        data = nullptr, size = 0;
    }
    void need(size_t bytes) {
        if (bytes <= size) return;
        release();
        data = static_cast<char*>(std::aligned_alloc(64, (bytes + 63) / 64 * 64));
        if (!data) throw std::bad_alloc();
        std::memset(data, 0, bytes), size = bytes;
    }
#else
    void release() {
        if (data) munmap(data, size);
        data = nullptr, size = 0;
    }
    // At least this much; what was there is lost if it grows.
    void need(size_t bytes) {
        if (bytes <= size) return;
        release();
        constexpr size_t huge = size_t(2) << 20;
        const size_t whole = (bytes + huge - 1) / huge * huge;
        void* p = mmap(nullptr, whole + huge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED) throw std::bad_alloc();
        char* begin = static_cast<char*>(p);
        const size_t skip = (huge - reinterpret_cast<uintptr_t>(begin) % huge) % huge;
        if (skip) munmap(begin, skip);
        if (huge - skip) munmap(begin + skip + whole, huge - skip);
        data = begin + skip, size = whole;
        madvise(data, size, MADV_HUGEPAGE);
    }
#endif
};
