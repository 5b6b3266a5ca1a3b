/* Tangled from native: edit there, `make tangle`. sha256:3c213114ecf5 */
#line 820 "chapters/tensors/native.md"
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <unistd.h>

#ifdef __x86_64__
#define relax() __builtin_ia32_pause()
#else
#define relax() sched_yield()
#endif

typedef void task(void *job, long i);

static struct pool {
  pthread_mutex_t busy, lock;
  pthread_cond_t wake;
  task *f;
  void *job;
  long n, workers, asleep, seats;
  atomic_long next, active, turn, cpu;
} pool = {.busy = PTHREAD_MUTEX_INITIALIZER,
          .lock = PTHREAD_MUTEX_INITIALIZER,
          .wake = PTHREAD_COND_INITIALIZER}, fresh;

#line 849 "chapters/tensors/native.md"
static void drain(void) {
  for (long i; (i = pool.next++) < pool.n;) pool.f(pool.job, i);
}

/* keep a worker off the processor on which its caller runs */
static void avoid(long cpu) {
#ifdef __linux__
  cpu_set_t set;
  /* else Linux wakes it there, and it waits for the caller to finish;
     from the set of the process: its own lacks earlier callers' places */
  if (sched_getaffinity(getpid(), sizeof set, &set)) return;
  CPU_CLR(cpu, &set);
  if (CPU_COUNT(&set)) sched_setaffinity(0, sizeof set, &set);
#endif
}

static long here(void) {
#ifdef __linux__
  return sched_getcpu();
#endif
  return 0;
}

#line 882 "chapters/tensors/native.md"
static void *worker(void *seen) {
  for (long turn = (long)seen, cpu = -1, seat;;) {
    /* about 0.1 ms: in a network the next kernel is rarely further away */
    for (int spin = 0; spin < 5000 && pool.turn == turn; spin++) relax();
    pthread_mutex_lock(&pool.lock);
    for (; pool.turn == turn; pool.asleep--) {
      pool.asleep++;
      pthread_cond_wait(&pool.wake, &pool.lock);
    }
    turn = pool.turn;
    /* without a seat the job must not be looked at: it may be gone */
    seat = pool.seats > 0;
    pool.seats -= seat, pool.active += seat;
    pthread_mutex_unlock(&pool.lock);
    if (cpu != pool.cpu) avoid(cpu = pool.cpu);
    if (seat) drain(), pool.active--;
  }
  return 0;
}

static void offer(long seats) {
  pthread_mutex_lock(&pool.lock);
  pool.seats = seats;
  pool.turn += seats > 0;
  if (seats > 0 && pool.asleep) pthread_cond_broadcast(&pool.wake);
  pthread_mutex_unlock(&pool.lock);
}

#line 916 "chapters/tensors/native.md"
/* f(job, i) for every i < n, on so many threads */
void parallel(task *f, void *job, long n, long threads) {
  /* nobody waits for a busy pool: the task of a job may start a job */
  if (n < 2 || threads < 2 || pthread_mutex_trylock(&pool.busy)) {
    for (long i = 0; i < n; i++) f(job, i);
    return;
  }
  for (pthread_t id; pool.workers < threads - 1; pool.workers++) {
    if (pthread_create(&id, 0, worker, (void *)pool.turn)) break;
    pthread_detach(id);
  }
  pool.f = f, pool.job = job, pool.n = n;
  pool.next = 0;
  pool.cpu = here();
  offer(threads - 1);
  drain();
  /* the seats go first: a worker without one never touches the job */
  offer(0);
  while (pool.active) sched_yield();
  pthread_mutex_unlock(&pool.busy);
}

/* a forked child has no workers, and mutexes that they may have held */
static void start_afresh(void) { pool = fresh; }
__attribute__((constructor)) static void start(void) {
  fresh = pool;
  pthread_atfork(0, 0, start_afresh);
}
