// Which level's kernels run: the best that this processor has, or the one that SIDEWINDER_ISA names.
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "kernels.h"

namespace sidewinder {

#define SW_DECLARE(level)       \
    namespace level {           \
    extern const Kernels table; \
    }
SW_DECLARE(portable)
#if defined(SW_HAVE_X86_LEVELS)
SW_DECLARE(avx2)
SW_DECLARE(avx512)
SW_DECLARE(avx512_bf16)
#elif defined(SW_HAVE_NEON)
SW_DECLARE(neon)
#endif

namespace {

struct Level {
    const Kernels* table;
    bool runs_here;
};

// Best first.
const Level* levels(int& count) {
#if defined(SW_HAVE_X86_LEVELS)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                      __builtin_cpu_supports("f16c");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512vl");
    const bool avx512_bf16 = avx512 && __builtin_cpu_supports("avx512bf16") &&
                             __builtin_cpu_supports("avx512vnni");
    static const Level all[] = {{&avx512_bf16::table, avx512_bf16},
                                {&avx512::table, avx512},
                                {&avx2::table, avx2},
                                {&portable::table, true}};
#elif defined(SW_HAVE_NEON)
    static const Level all[] = {{&neon::table, true}, {&portable::table, true}};
#else
    static const Level all[] = {{&portable::table, true}};
#endif
    count = sizeof all / sizeof all[0];
    return all;
}

const Kernels& best() {
    int count;
    const Level* all = levels(count);
    for (int i = 0; i < count; ++i) {
        if (all[i].runs_here) return *all[i].table;
    }
    std::abort();  // the portable level runs everywhere
}

const Kernels& named(const char* name) {
    int count;
    const Level* all = levels(count);
    std::string usable;
    for (int i = 0; i < count; ++i) {
        if (!all[i].runs_here) continue;
        if (std::strcmp(all[i].table->isa, name) == 0) return *all[i].table;
        usable += (usable.empty() ? "" : ", ") + std::string(all[i].table->isa);
    }
    throw std::invalid_argument("SIDEWINDER_ISA=" + std::string(name) +
                                ": this processor runs " + usable);
}

const Kernels* chosen = nullptr;

}  // namespace

const Kernels& kernels() { return *chosen; }

void set_isa(const char* name) { chosen = name[0] == '\0' ? &best() : &named(name); }

}  // namespace sidewinder
