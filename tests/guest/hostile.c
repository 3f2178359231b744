// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/*
 * A process that means no good, on the device of the guest's driver. Runs in a
 * guest as root; says "harmless" and ends with 0 if everything it may not do was
 * refused as it should be.
 *
 * "hostile hold": announces a section, says "in" and holds it for ever, asleep.
 * "hostile spin": the same, and never sleeps.
 * "hostile hints": says whether the host's heart beats, and what the lines say:
 * CPU, preempted, overloaded.
 * "hostile map": maps the lines, closes the device, says "in" and sleeps for ever.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "virtio_ecs.h"
#include "virtio_ecs_user.h"

#define DEVICE		"/dev/virtio_ecs"
#define THREADS		24
#define STORM_SECONDS	2

#define MUST(condition) do {						\
	if (!(condition)) {						\
		printf("line %d: %s (errno %d)\n", __LINE__, #condition, errno);	\
		exit(1);						\
	}								\
} while (0)

static int device(void)
{
	int fd = open(DEVICE, O_RDWR);

	MUST(fd >= 0);
	return fd;
}

static int enter(int fd)
{
	return ioctl(fd, VIRTIO_ECS_USER_ENTER) ? errno : 0;
}

static int leave(int fd)
{
	return ioctl(fd, VIRTIO_ECS_USER_LEAVE) ? errno : 0;
}

/* Every number of the type and many others, with arguments that point nowhere. */
static void bad_ioctls(void)
{
	static const unsigned long arguments[] = { 0, 1, ~0UL, 0xffff800000000000UL };
	int fd = device(), i, j;
	char byte;

	for (i = 0; i < 0x2000; i++) {
		unsigned long cmd = ((unsigned long)(i & 3) << 30) | (i * 2654435761UL & 0x3fffffff);

		if (cmd == VIRTIO_ECS_USER_ENTER || cmd == VIRTIO_ECS_USER_LEAVE)
			continue;
		for (j = 0; j < 4; j++)
			MUST(ioctl(fd, cmd, arguments[j]) && errno != EFAULT);
	}
	for (i = 2; i < 256; i++)
		MUST(ioctl(fd, _IO(0xec, i), 0) && errno == ENOTTY);
	MUST(read(fd, &byte, 1) < 0 && write(fd, &byte, 1) < 0);
	MUST(leave(fd) == EALREADY);
	MUST(enter(fd) == 0 && enter(fd) == EALREADY);
	MUST(leave(fd) == 0 && leave(fd) == EALREADY);
	close(fd);
}

static int limit(void)
{
	FILE *file = fopen("/sys/module/virtio_ecs/parameters/user_max", "r");
	int max;

	MUST(file && fscanf(file, "%d", &max) == 1);
	fclose(file);
	return max;
}

static void too_many_files(void)
{
	int max = limit(), fds[256], i;

	MUST(max < 256);
	for (i = 0; i < max; i++)
		fds[i] = device();
	MUST(open(DEVICE, O_RDWR) < 0 && errno == EMFILE);
	/* One section is all a thread has, through whichever file. */
	MUST(enter(fds[0]) == 0 && enter(fds[1]) == EALREADY && leave(fds[1]) == EALREADY);
	for (i = 0; i < max; i++)
		close(fds[i]);
	/* It ended with its file. */
	fds[0] = device();
	MUST(leave(fds[0]) == EALREADY);
	close(fds[0]);
}

static atomic_int shared;
static atomic_bool over;
static atomic_ulong entered, refused, closed;

/* Enters and leaves through whatever file is there, closed under its hands. */
static void *storm(void *unused)
{
	unsigned int round = 0;

	while (!over) {
		int error = enter(shared);

		/* The one that closes the file must get its turn, too. */
		if (++round % 64 == 0)
			usleep(100);

		MUST(!error || error == EALREADY || error == EAGAIN || error == EBADF ||
		     error == ENOTTY);
		if (error)
			refused++;
		else
			entered++;
		error = leave(shared);
		MUST(!error || error == EALREADY || error == EBADF || error == ENOTTY);
	}
	return unused;
}

static void closed_under_use(void)
{
	pthread_t threads[THREADS];
	time_t end;
	int i;

	shared = device();
	for (i = 0; i < THREADS; i++)
		MUST(!pthread_create(&threads[i], NULL, storm, NULL));
	end = time(NULL) + STORM_SECONDS;
	while (time(NULL) <= end || closed < 50) {
		int old = shared;

		shared = device();
		close(old);
		closed++;
		usleep(1000);
	}
	over = true;
	for (i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
	close(shared);
	MUST(entered > 1000);
	printf("%d threads: %lu sections, %lu refused, %lu files closed under them\n",
	       THREADS, entered, refused, closed);
}

/* Children inherit the file, and not the section. */
static void forks(void)
{
	int fd = device(), i, status;

	MUST(enter(fd) == 0);
	for (i = 0; i < 100; i++) {
		pid_t child = fork();

		if (!child) {
			if (leave(fd) != EALREADY || enter(fd) != 0)
				_exit(1);
			if (i & 1)
				raise(SIGKILL);
			_exit(0);
		}
		MUST(child > 0 && waitpid(child, &status, 0) == child);
		MUST(i & 1 ? WIFSIGNALED(status) : WIFEXITED(status) && !WEXITSTATUS(status));
	}
	/* Nor do they end the parent's. */
	MUST(leave(fd) == 0);
	close(fd);
}

/* Killed inside a section, and after it has become another program there. */
static void killed_inside(const char *self)
{
	int i, status;

	for (i = 0; i < 20; i++) {
		int said[2];
		char word[2];
		pid_t child;

		MUST(!pipe(said));
		child = fork();
		if (!child) {
			dup2(said[1], 1);
			if (i & 1) {
				int fd = device();

				/* It keeps the file open beyond the exec. */
				if (enter(fd))
					_exit(1);
				execl("/bin/busybox", "sh", "-c", "echo in; sleep 1000", NULL);
			}
			execl(self, self, "hold", NULL);
			_exit(1);
		}
		MUST(child > 0 && read(said[0], word, 2) == 2 && !memcmp(word, "in", 2));
		MUST(!kill(child, SIGKILL) && waitpid(child, &status, 0) == child);
		close(said[0]);
		close(said[1]);
	}
}

static int possible_cpus(void)
{
	FILE *file = fopen("/sys/devices/system/cpu/possible", "r");
	int first, last, found;

	MUST(file);
	found = fscanf(file, "%d-%d", &first, &last);
	MUST(found >= 1);
	fclose(file);
	return (found == 1 ? first : last) + 1;
}

static size_t lines_size(void)
{
	size_t page = sysconf(_SC_PAGESIZE);

	return (possible_cpus() * VIRTIO_ECS_LINE_SIZE + page - 1) / page * page;
}

static volatile struct virtio_ecs_host_line *lines(int fd, int flags)
{
	void *at = mmap(NULL, lines_size(), PROT_READ, flags, fd, 0);

	MUST(at != MAP_FAILED);
	return at;
}

static bool no_mapping(int fd, size_t size, int prot, int flags, off_t offset, int error)
{
	return mmap(NULL, size, prot, flags, fd, offset) == MAP_FAILED && errno == error;
}

static void no_other_mapping(int fd, int flags)
{
	size_t page = sysconf(_SC_PAGESIZE), size = lines_size();

	MUST(no_mapping(fd, page, PROT_WRITE, flags, 0, EPERM));
	MUST(no_mapping(fd, page, PROT_READ | PROT_WRITE, flags, 0, EPERM));
	MUST(no_mapping(fd, page, PROT_READ | PROT_EXEC, flags, 0, EPERM));
	MUST(no_mapping(fd, size + 1, PROT_READ, flags, 0, EINVAL));
	MUST(no_mapping(fd, 1UL << 32, PROT_READ, flags, 0, EINVAL));
	MUST(no_mapping(fd, page, PROT_READ, flags, page, EINVAL));
	MUST(no_mapping(fd, page, PROT_READ, flags, 1L << 40, EINVAL));
}

/* Nor does a mapping become another one later. */
static void lines_stay_read_only(int fd, int flags)
{
	size_t page = sysconf(_SC_PAGESIZE), size = lines_size();
	volatile struct virtio_ecs_host_line *host = lines(fd, flags);
	int memory = open("/proc/self/mem", O_RDWR), status;
	__u32 word = 1;
	pid_t child;

	MUST(mprotect((void *)host, size, PROT_READ | PROT_WRITE) && errno == EACCES);
	MUST(mprotect((void *)host, size, PROT_READ | PROT_EXEC) && errno == EACCES);
	MUST(mremap((void *)host, size, size + page, MREMAP_MAYMOVE) == MAP_FAILED);
	MUST(memory >= 0 && pwrite(memory, &word, sizeof(word), (off_t)&host->overloaded) < 0);
	close(memory);
	child = fork();
	if (!child) {
		host->overloaded = 1;
		_exit(0);
	}
	MUST(child > 0 && waitpid(child, &status, 0) == child);
	MUST(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
	MUST(!host->overloaded);
	MUST(!munmap((void *)host, size));
}

/* What the host writes can be read, and that is all. */
static void mappings(void)
{
	int fd = device(), read_only = open(DEVICE, O_RDONLY);
	volatile struct virtio_ecs_host_line *host;

	MUST(read_only >= 0);
	no_other_mapping(fd, MAP_SHARED);
	no_other_mapping(fd, MAP_PRIVATE);
	lines_stay_read_only(fd, MAP_SHARED);
	lines_stay_read_only(fd, MAP_PRIVATE);
	lines_stay_read_only(read_only, MAP_SHARED);
	host = lines(fd, MAP_SHARED);
	close(fd);
	close(read_only);
	MUST(!host->overloaded);
	MUST(!munmap((void *)host, lines_size()));
}

static void show_hints(void)
{
	volatile struct virtio_ecs_host_line *host = lines(device(), MAP_SHARED);
	__u32 beat = host->heartbeat;
	int i;

	for (i = 0; i < 50 && host->heartbeat == beat; i++)
		usleep(10000);
	puts(host->heartbeat == beat ? "silent" : "alive");
	for (i = 0; i < possible_cpus(); i++)
		printf("%d %u %u\n", i, host[i].preempted, host[i].overloaded);
}

static void stay_mapped(void)
{
	int fd = device();
	volatile struct virtio_ecs_host_line *host = lines(fd, MAP_SHARED);

	close(fd);
	MUST(!host->overloaded);
	puts("in");
	fflush(stdout);
	for (;;)
		pause();
}

int main(int argc, char **argv)
{
	if (argc > 1 && !strcmp(argv[1], "hints")) {
		show_hints();
		return 0;
	}
	if (argc > 1 && !strcmp(argv[1], "map"))
		stay_mapped();
	if (argc > 1) {
		MUST(enter(device()) == 0);
		puts("in");
		fflush(stdout);
		for (;;)
			if (strcmp(argv[1], "spin"))
				pause();
	}
	/* What it says arrives, whatever becomes of it. */
	setvbuf(stdout, NULL, _IONBF, 0);
	bad_ioctls();
	puts("bad ioctls are refused");
	too_many_files();
	puts("so are too many files");
	closed_under_use();
	forks();
	puts("children have sections of their own");
	killed_inside(argv[0]);
	mappings();
	puts("what the host writes can be read, and nothing else");
	puts("harmless");
	return 0;
}
