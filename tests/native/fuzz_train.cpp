// Random shapes and lengths through native training, built with sanitizers by `make sanitize`: no result
// is checked here but that it is a number and has the same bits on one thread and on several
// (tests/numerics/test_native_train.py and test_native_words.py compare the numbers).
//
//   fuzz_train [rounds] [seed]

#include "fuzz.hpp"

int main(int count, char** words) {
    Fuzz fuzz(count, words);
    const int rounds = fuzz.rounds;
    auto number = [&](int low, int high) { return fuzz.number(low, high); };
    auto values = [&](size_t size) { return fuzz.values(size); };
    auto sound = [](const Values& all) {
        return std::all_of(all.begin(), all.end(), [](bf16 value) { return (value & 0x7f80) != 0x7f80; });
    };
    for (int round = 0; round < rounds; ++round) {
        const int heads = number(1, 3), head = 32 * number(1, 3), hidden = heads * head, inner = 32 * number(1, 6);
        const int layers = number(1, 3), longest = number(1, 200);
        const int shape[6] = {layers, hidden, heads, head, inner, number(0, 2)};
        const size_t h = hidden, n = inner;
        const size_t sizes[TENSORS] = {h * h, h, h * h, h, h * h, h, h * h, h, h * n, n, h * n, h, h, h, h, h};
        std::vector<Values> weights;
        std::vector<const void*> at;
        for (int i = 0; i < layers * TENSORS; ++i) weights.push_back(values(sizes[i % TENSORS]));
        for (const Values& weight : weights) at.push_back(weight.data());
        void* trainer = filbert_train_new(shape, 1e-12f);
        for (int call = 0; call < 2; ++call) {
            const int texts = number(1, 10);
            std::vector<int> lengths(texts), wanted;
            int tokens = 0;
            for (int& length : lengths) tokens += length = number(1, longest);
            const bool some = number(0, 1);
            for (int i = number(1, tokens); some && i > 0; --i) wanted.push_back(number(0, tokens - 1));
            const size_t results = some ? wanted.size() : size_t(tokens);
            const int dropped[2] = {number(0, 1) * number(0, 65535), number(0, 1) * number(0, 65535)}, lowest = number(0, layers - 1);
            const Values hidden_states = values(tokens * h), given = values(results * h);
            const int piece = number(1, 600);
            std::vector<bool> asked;
            for (int i = 0; i < layers * TENSORS; ++i) asked.push_back(number(0, 5) > 0 && i / TENSORS >= lowest);
            // all results of a pass, at exactly their sizes, so that a write beyond one is seen
            auto pass = [&](int threads) {
                std::vector<Values> all{Values(results * h), Values(tokens * h)};
                std::vector<void*> grads;
                for (size_t i = 0; i < weights.size(); ++i) all.emplace_back(asked[i] ? weights[i].size() : 0);
                for (size_t i = 0; i < weights.size(); ++i) grads.push_back(asked[i] ? all[2 + i].data() : nullptr);
                const int run = filbert_train_forward(trainer, at.data(), hidden_states.data(), lengths.data(), texts,
                                                      some ? wanted.data() : nullptr, int(wanted.size()), 7, dropped, all[0].data(),
                                                      threads, piece);
                if (run < 0 || filbert_train_backward(trainer, run, at.data(), given.data(), lowest ? nullptr : all[1].data(),
                                                      grads.data(), lowest, threads))
                    std::puts("out of memory"), std::exit(1);
                filbert_train_release(trainer, run);
                return all;
            };
            const auto one = pass(1), several = pass(number(1, 5));
            for (const Values& part : one)
                if (!sound(part)) return std::printf("round %d: no number\n", round), 1;
            if (one != several) return std::printf("round %d: several threads give other bits\n", round), 1;
        }
        filbert_train_free(trainer);
    }
    void* loss_of_words = filbert_words_new();
    for (int round = 0; round < rounds; ++round) {
        const int rows = number(1, 400), width = 32 * number(1, 12), many = number(1, 1500), sizes[3] = {rows, many, width};
        const float smoothing = number(0, 1) * 0.1f;
        const Values hidden = values(size_t(rows) * width), weight = values(size_t(many) * width), bias = values(many);
        std::vector<int64_t> labels(rows);
        for (int64_t& label : labels) label = number(0, many - 1);
        const bool asked[3] = {number(0, 3) > 0, number(0, 3) > 0, number(0, 3) > 0};
        auto pass = [&](int threads) {
            std::vector<Values> all{Values(asked[0] * hidden.size()), Values(asked[1] * weight.size()), Values(asked[2] * bias.size())};
            std::vector<float> kept(rows);
            float loss = 0.f;
            int64_t right = 0;
            if (filbert_words_forward(loss_of_words, sizes, smoothing, hidden.data(), weight.data(), bias.data(), labels.data(), kept.data(),
                                      &loss, &right, threads) ||
                filbert_words_backward(loss_of_words, sizes, smoothing, hidden.data(), weight.data(), bias.data(), labels.data(), kept.data(),
                                       0.5f, asked[0] ? all[0].data() : nullptr, asked[1] ? all[1].data() : nullptr,
                                       asked[2] ? all[2].data() : nullptr, threads))
                std::puts("out of memory"), std::exit(1);
            all.push_back({to_bf16(loss), bf16(right)});
            return all;
        };
        const auto one = pass(1), several = pass(number(1, 5));
        for (const Values& part : one)
            if (!sound(part)) return std::printf("words, round %d: no number\n", round), 1;
        if (one != several) return std::printf("words, round %d: several threads give other bits\n", round), 1;
    }
    std::printf("%d rounds\n", rounds);
}
