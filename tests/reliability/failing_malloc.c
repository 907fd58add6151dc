/* glibc's allocator, of which the N-th large allocation after fail_at(N) fails, counted over all threads. */
#include <errno.h>
#include <stdatomic.h>
#include <stddef.h>

extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);

static const size_t large = 1 << 16; /* of smaller ones there are millions, most of them Python's own */
static atomic_long armed, made, failing;

void fail_at(long n) { made = 0, failing = n, armed = 1; } /* 0: only count */

long allocations(void) { return made; }

static int fails(size_t size) {
  return armed && size >= large && atomic_fetch_add(&made, 1) + 1 == failing && (errno = ENOMEM);
}

void *malloc(size_t size) { return fails(size) ? NULL : __libc_malloc(size); }
void *calloc(size_t n, size_t size) { return fails(n * size) ? NULL : __libc_calloc(n, size); }
void *realloc(void *old, size_t size) { return fails(size) ? NULL : __libc_realloc(old, size); }
void *memalign(size_t alignment, size_t size) { return fails(size) ? NULL : __libc_memalign(alignment, size); }
void *aligned_alloc(size_t alignment, size_t size) { return memalign(alignment, size); }

int posix_memalign(void **found, size_t alignment, size_t size) {
  void *memory = memalign(alignment, size);
  if (memory == NULL) return ENOMEM;
  *found = memory;
  return 0;
}
