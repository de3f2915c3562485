// What the fuzzers of this folder share: their arguments, [rounds] [seed], and what they draw.
#pragma once

#include "../../filbert/native/encoder.cpp"

#include <cstdio>
#include <random>

using Values = std::vector<bf16>;

struct Fuzz {
    const int rounds;
    std::mt19937 draw;
    std::normal_distribution<float> normal{0.f, 0.2f};

    // Ends the process, without an error, where the processor lacks what was compiled for.
    Fuzz(int count, char** words) : rounds(count > 1 ? std::atoi(words[1]) : 200), draw(count > 2 ? std::atoi(words[2]) : 1) {
        if (filbert_native_level() & 1) return;
        std::puts("skipped: this processor lacks the instructions");
        std::exit(0);
    }
    int number(int low, int high) { return std::uniform_int_distribution<int>(low, high)(draw); }
    std::vector<float> floats(size_t size) {
        std::vector<float> all(size);
        for (float& value : all) value = normal(draw);
        return all;
    }
    Values values(size_t size) {
        Values all(size);
        for (bf16& value : all) value = to_bf16(normal(draw));
        return all;
    }
};
