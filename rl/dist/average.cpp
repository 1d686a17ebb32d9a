// Adds up or averages the vectors of several processes in memory that they share (rl/dist/shared_memory.py).
//
// The memory holds a place for every process, with the number of vectors that it has brought, and then two tables of one
// vector a process, which the calls use in turn. Whoever writes to a table has seen all others come to the call before,
// so that all of them have read what the table held.

#include <atomic>
#include <cerrno>
#include <climits>
#include <cstdint>
#include <cstring>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

namespace {

constexpr int64_t BLOCK = 512;  // numbers that are added up in the fastest cache

struct alignas(64) Place {  // a cache line
  std::atomic<uint32_t> brought;
  std::atomic<uint32_t> sleepers;
};

struct Meeting {  // Meeting in rl/dist/shared_memory.py
  char* memory;
  int64_t table_bytes;
  int32_t rank;
  int32_t size;
  int32_t spins;
  uint32_t taken;  // number of calls that have ended
};

long futex(std::atomic<uint32_t>& word, int operation, uint32_t value, const timespec* timeout) {
  return syscall(SYS_futex, &word, operation, value, timeout, nullptr, 0);
}

void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

bool has_come(const Place& place, uint32_t turn) {
  return int32_t(place.brought.load(std::memory_order_acquire) - turn) >= 0;
}

// Waits until a process has come, but not for longer than a slice of time, nor after a signal.
bool comes(Place& place, uint32_t turn, int32_t spins, int64_t slice_ns) {
  for (int32_t spin = 0; spin < spins; ++spin) {
    if (has_come(place, turn)) return true;
    relax();
  }
  const timespec slice = {time_t(slice_ns / 1000000000), long(slice_ns % 1000000000)};
  ++place.sleepers;
  bool goes_on = true;
  while (goes_on && !has_come(place, turn)) {
    // The system only lets it sleep while nothing new has been brought.
    goes_on = futex(place.brought, FUTEX_WAIT, turn - 1, &slice) == 0;
  }
  --place.sleepers;
  return has_come(place, turn);
}

template <typename Number>
int32_t combine(Meeting* meeting, Number* values, int64_t length, bool mean, int64_t slice_ns) {
  auto* places = reinterpret_cast<Place*>(meeting->memory);
  const uint32_t turn = meeting->taken + 1;
  char* tables = meeting->memory + meeting->size * sizeof(Place);
  auto* table = reinterpret_cast<Number*>(tables + (turn % 2) * meeting->table_bytes);
  Place& own = places[meeting->rank];
  if (!has_come(own, turn)) {  // else this call goes on with one that was cut short
    std::memcpy(table + meeting->rank * length, values, length * sizeof(Number));
    own.brought.store(turn);
    if (own.sleepers.load() > 0) futex(own.brought, FUTEX_WAKE, INT_MAX, nullptr);
  }
  for (int32_t rank = 0; rank < meeting->size; ++rank) {
    if (!comes(places[rank], turn, meeting->spins, slice_ns)) return rank;
  }
  for (int64_t start = 0; start < length; start += BLOCK) {
    const int64_t number = length - start < BLOCK ? length - start : BLOCK;
    Number sums[BLOCK];
    // x + -0 is x; torch.mean starts with 0, which makes a 0 of a sum of -0.
    for (int64_t i = 0; i < number; ++i) sums[i] = mean ? Number(0) : Number(-0.0);
    for (int32_t rank = 0; rank < meeting->size; ++rank) {
      const Number* brought = table + rank * length + start;
      for (int64_t i = 0; i < number; ++i) sums[i] += brought[i];
    }
    const Number divisor = mean ? Number(meeting->size) : Number(1);
    for (int64_t i = 0; i < number; ++i) values[start + i] = sums[i] / divisor;
  }
  meeting->taken = turn;
  return -1;
}

}  // namespace

// Each replaces the values of every process by their sum or mean, in the order of ranks. They return -1, or the rank that
// has not come in a slice of time or before a signal; the call is then to be repeated.
extern "C" int32_t combine_float(Meeting* meeting, float* values, int64_t length, bool mean, int64_t slice_ns) {
  return combine(meeting, values, length, mean, slice_ns);
}

extern "C" int32_t combine_double(Meeting* meeting, double* values, int64_t length, bool mean, int64_t slice_ns) {
  return combine(meeting, values, length, mean, slice_ns);
}
