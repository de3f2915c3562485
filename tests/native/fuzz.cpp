// Random shapes and lengths through the native encoder, built with AddressSanitizer and
// UndefinedBehaviorSanitizer by `make sanitize`: no result is checked here but that it is a number
// and the same on one thread and on several (tests/numerics/test_native.py compares the numbers).
//
//   fuzz [rounds] [seed]

#include "fuzz.hpp"

int main(int count, char** words) {
    Fuzz fuzz(count, words);
    const int rounds = fuzz.rounds;
    auto number = [&](int low, int high) { return fuzz.number(low, high); };
    auto floats = [&](size_t size) { return fuzz.floats(size); };
    for (int round = 0; round < rounds; ++round) {
        const int heads = number(1, 5), head = number(1, 90), hidden = heads * head, inner = number(1, 700);
        const int layers = number(1, 3), vocabulary = number(1, 50), longest = number(1, 300);
        const int shape[6] = {layers, hidden, heads, head, inner, number(0, 2)};
        const bool plain = number(0, 1);  // float32: the same to the bit
        void* encoder = filbert_encoder_new(shape, 1e-12f, plain);
        const auto words_table = floats(size_t(vocabulary) * hidden), places = floats(size_t(longest) * hidden);
        const auto kinds = floats(size_t(2) * hidden), gain = floats(hidden), shift = floats(hidden);
        filbert_encoder_embeddings(encoder, words_table.data(), places.data(), kinds.data(), gain.data(), shift.data());
        const int int8 = number(0, 15);
        for (int layer = 0; layer < layers; ++layer) {
            const size_t h = hidden, i = inner;
            const size_t sizes[12] = {3 * h * h, 3 * h, h * h, h, i * h, i, h * i, h, h, h, h, h};
            std::vector<std::vector<float>> weights;
            const float* pointers[12];
            for (int w = 0; w < 12; ++w) weights.push_back(floats(sizes[w])), pointers[w] = weights.back().data();
            filbert_encoder_layer(encoder, layer, pointers, int8);
        }
        for (int call = 0; call < 3; ++call) {
            const int texts = number(1, 12);
            std::vector<int64_t> lengths(texts);
            int tokens = 0;
            for (int64_t& length : lengths) tokens += int(length = number(1, longest));
            const int64_t limits[3] = {vocabulary, 2, longest};
            std::vector<int64_t> ids(tokens), types(tokens);
            for (auto& id : ids) id = number(0, vocabulary - 1);
            for (auto& type : types) type = number(0, 1);
            const auto hidden_states = floats(size_t(tokens) * hidden);
            const int answer = number(0, 2);  // all states, first ones, means
            const bool ready = number(0, 3) == 0, typed = number(0, 1);
            const size_t rows = answer ? texts : tokens;
            std::vector<float> one(rows * hidden), several(rows * hidden);
            const int chunk = number(1, 600);
            auto run = [&](std::vector<float>& out, int threads, int chunk_tokens) {
                return filbert_encoder_run(encoder, ready ? nullptr : ids.data(), typed && !ready ? types.data() : nullptr,
                                           ready ? hidden_states.data() : nullptr, lengths.data(), texts, tokens, limits,
                                           out.data(), answer, threads, chunk_tokens);
            };
            for (int rounds_more = number(0, 3); rounds_more > 0; --rounds_more) filbert_encoder_rouse(encoder, number(1, 6));
            if (run(one, 1, chunk) || run(several, number(1, 6), number(1, 600))) return std::puts("out of memory"), 1;
            for (size_t i = 0; i < one.size(); ++i)
                if (!std::isfinite(one[i]) || std::abs(one[i] - several[i]) > (plain ? 0.f : 0.3f * (1.f + std::abs(one[i])))) {
                    std::printf("round %d: %g alone, %g by several threads\n", round, one[i], several[i]);
                    return 1;
                }
            // one chunk is the same to the bit, whoever of the threads was awake in time
            if (run(one, 1, tokens) || run(several, number(2, 6), tokens)) return std::puts("out of memory"), 1;
            if (std::memcmp(one.data(), several.data(), one.size() * sizeof(float)))
                return std::printf("round %d: other bits by several threads\n", round), 1;
            // a batch that is none is refused before anything is read by it
            const int place = number(0, tokens - 1), text = number(0, texts - 1), way = number(0, 2);
            if (way == 0) ids[place] = number(0, 1) ? vocabulary : -1;
            else if (way == 1) types[place] = number(0, 1) ? 2 : -1;
            else lengths[text] = number(0, 1) ? longest + 1 : number(-1, 0);
            const bool seen = way == 2 || (!ready && (way == 0 || typed));
            if (seen && run(one, 1, chunk) != 4) return std::puts("an unsound batch was computed"), 1;
        }
        filbert_encoder_free(encoder);
    }
    std::printf("%d rounds\n", rounds);
}
