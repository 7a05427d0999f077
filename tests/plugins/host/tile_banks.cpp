// Prints, for each element type and tile, how often a warp's stores into a slice, and its 16-byte reads, meet
// in one bank of shared memory: 32 banks of 4 bytes, 8 lanes a turn where a lane reads 16 bytes.
#include <token_peaks.cuh>

#include <algorithm>
#include <cstdio>
#include <set>
#include <vector>

using namespace tokenrt;

namespace {

// Turns that accesses to these words take: as many as there are different words in the fullest bank.
int turns(const std::vector<int>& words) {
    std::set<int> banks[32];
    for (const int word : words) {
        banks[word % 32].insert(word);
    }
    std::size_t most = 0;
    for (const auto& bank : banks) {
        most = std::max(most, bank.size());
    }
    return static_cast<int>(most);
}

template <typename T, int kRows>
void print(const char* name) {
    using Policy = TilePolicy<kRows>;
    constexpr int kCount = Pack<T>::kCount, kTile = Policy::kTile;
    const auto word = [](int k, int row) { return k * kTile + swizzled<T>(k, row); };
    int stores = 0, reads = 0;
    for (int unit = 0; unit < kTile * Policy::kVectors; unit += 32) {
        for (int j = 0; j < kCount; ++j) {
            std::vector<int> words;
            for (int lane = 0; lane < 32; ++lane) {
                words.push_back(
                    word((unit + lane) % Policy::kVectors * kCount + j, (unit + lane) / Policy::kVectors));
            }
            stores = std::max(stores, turns(words));
        }
    }
    for (int k = 0; k < Policy::kVectors * kCount; ++k) {
        for (int first = 0; first < Policy::kSide; first += 8) {
            std::vector<int> words;
            for (int x = first; x < first + 8; ++x) {
                for (int i = 0; i < 4; ++i) {
                    words.push_back(word(k, 4 * x) + i);
                }
            }
            reads = std::max(reads, turns(words));
        }
    }
    std::set<int> places;
    for (int row = 0; row < kTile; ++row) {
        places.insert(swizzled<T>(Policy::kVectors * kCount - 1, row));
    }
    const bool whole = static_cast<int>(places.size()) == kTile && *places.rbegin() == kTile - 1;
    std::printf("%s %d %d %d %d\n", name, kTile, stores, reads, whole);
}

// The same of the distances of a tile, which each thread stores as it holds them, and each lane reads by row.
void print_distances() {
    using Policy = peaks::Policy;
    constexpr int kTile = Policy::kTile, kEach = Policy::kEach, kSide = Policy::kSide;
    const auto word = [](int row, int column) { return row * kTile + peaks::placed(row, column); };
    int stores = 0, reads = 0;
    std::set<int> places;
    for (int first = 0; first < Policy::kThreads; first += 32) {
        for (int i = 0; i < kEach * kEach; ++i) {
            std::vector<int> words;
            for (int me = first; me < first + 32; ++me) {
                words.push_back(word(kEach * (me / kSide) + i / kEach, kEach * (me % kSide) + i % kEach));
            }
            stores = std::max(stores, turns(words));
            places.insert(words.begin(), words.end());
        }
    }
    for (int column = 0; column < kTile; ++column) {
        std::vector<int> words;
        for (int row = 0; row < 32; ++row) {
            words.push_back(word(row, column));
        }
        reads = std::max(reads, turns(words));
    }
    const bool whole = static_cast<int>(places.size()) == kTile * kTile && *places.rbegin() < kTile * kTile;
    std::printf("distances %d %d %d %d\n", kTile, stores, reads, whole);
}

}  // namespace

int main() {
    print<float, 32>("float32");
    print<float, 64>("float32");
    print<__half, 32>("float16");
    print<__half, 64>("float16");
    print_distances();
}
