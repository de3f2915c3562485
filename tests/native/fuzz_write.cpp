// Random shapes through the native steps of a decoder, built with sanitizers by `make sanitize`: no
// result is checked here but that it is a number and has the same bits on one thread and on several
// (tests/numerics/test_native_write.py compares the numbers).
//
//   fuzz_write [rounds] [seed]

#include "fuzz.hpp"

int main(int count, char** words) {
    Fuzz fuzz(count, words);
    const int rounds = fuzz.rounds;
    auto number = [&](int low, int high) { return fuzz.number(low, high); };
    auto values = [&](size_t size) { return fuzz.values(size); };
    auto floats = [&](size_t size) { return fuzz.floats(size); };
    auto sound = [](const std::vector<float>& all) {
        return std::all_of(all.begin(), all.end(), [](float value) { return std::isfinite(value); });
    };
    for (int round = 0; round < rounds; ++round) {
        const int heads = number(1, 3), head = 32 * number(1, 3), hidden = heads * head, inner = 32 * number(1, 6);
        const int layers = number(1, 3), many = number(1, 300), shape[6] = {layers, hidden, heads, head, inner, number(0, 2)};
        const size_t h = hidden, n = inner;
        void* writer = filbert_writer_new(shape, 1e-12f);
        auto pointers = [](const std::vector<Values>& all) {
            std::vector<const void*> at;
            for (const Values& one : all) at.push_back(one.data());
            return at;
        };
        for (int layer = 0; layer < layers; ++layer) {
            std::vector<Values> weights;
            for (const size_t size : {h * h, h, h * h, h, h * h, h, h * h, h, h * h, h, h * h, h, h * n, n, h * n, h, h, h, h, h, h, h})
                weights.push_back(values(size));
            if (filbert_writer_layer(writer, layer, pointers(weights).data())) return std::puts("out of memory"), 1;
        }
        std::vector<Values> ends;
        for (const size_t size : {h * h, h, h, h, h * many, size_t(many)}) ends.push_back(values(size));
        if (filbert_writer_words(writer, many, pointers(ends).data())) return std::puts("out of memory"), 1;
        for (int call = 0; call < 2; ++call) {
            // more rows may have room than are at work, and a text more columns than steps
            const int rows = number(1, 40), beams = number(1, 9), texts = rows * beams, step = number(0, 30), longest = number(1, 40);
            const int room = step + number(1, 5), slots = room * beams, kept = rows + number(0, 3);
            const size_t own = size_t(kept) * heads * slots * head, far = size_t(kept) * heads * longest * head;
            std::vector<Values> past, keys, sources;
            std::vector<int64_t> path(size_t(texts) * room), lengths(rows);
            for (int text = 0; text < texts; ++text)
                for (int i = 0; i <= step; ++i)
                    path[size_t(text) * room + i] = i * beams + (i == step ? text % beams : number(0, beams - 1));
            for (int64_t& length : lengths) length = number(1, longest);
            for (int layer = 0; layer < layers; ++layer) past.push_back(values(2 * own)), keys.push_back(values(far)), sources.push_back(values(far));
            const Values states = values(size_t(texts) * h);
            const int sizes[7] = {texts, beams, step, slots, room, kept, longest};
            auto pass = [&](int threads) {
                std::vector<float> logits(size_t(texts) * many), totals(texts);
                std::vector<const void*> at{states.data(), path.data(), lengths.data(), logits.data(), totals.data()};
                for (int layer = 0; layer < layers; ++layer)
                    at.push_back(past[layer].data()), at.push_back(keys[layer].data()), at.push_back(sources[layer].data());
                if (filbert_writer_step(writer, sizes, at.data(), threads)) std::puts("out of memory"), std::exit(1);
                logits.insert(logits.end(), totals.begin(), totals.end());
                return logits;
            };
            const auto one = pass(1), several = pass(number(1, 5));
            if (!sound(one)) return std::printf("round %d: no number\n", round), 1;
            if (one != several) return std::printf("round %d: several threads give other bits\n", round), 1;

            const auto asked = floats(size_t(texts) * 2 * h), first = floats(own), second = floats(own), offsets = floats(texts);
            std::vector<float> out(size_t(texts) * h), sums(texts);
            const int look_at[6] = {texts, beams, 2 * hidden, slots, room, step + 1};
            const bool whole = number(0, 1);  // no path: the first entries of a row
            for (int64_t& length : lengths) length = number(1, slots);
            const int first_of[6] = {texts, beams, 2 * hidden, slots, 0, slots};
            if (filbert_writer_attend(writer, whole ? first_of : look_at, asked.data(), first.data(), second.data(),
                                      whole ? nullptr : path.data(), whole ? lengths.data() : nullptr, out.data(), number(1, 5)))
                return std::puts("out of memory"), 1;
            const int some = number(1, many), best[4] = {rows, beams, many, some};
            std::vector<float> scores(size_t(rows) * some);
            std::vector<int64_t> beam_of(scores.size()), word_of(scores.size());
            filbert_writer_totals(writer, one.data(), texts, many, sums.data(), number(1, 5));
            filbert_writer_best(writer, best, one.data(), offsets.data(), scores.data(), beam_of.data(), word_of.data(), number(1, 5));
            if (!sound(out) || !sound(sums) || !sound(scores)) return std::printf("round %d: no number\n", round), 1;
        }
        filbert_writer_free(writer);
    }
    std::printf("%d rounds\n", rounds);
}
