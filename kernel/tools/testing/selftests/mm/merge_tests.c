// SPDX-License-Identifier: GPL-2.0-only
/*
 * MADV_MERGE: what it promises, what it refuses, who shares with whom, and how
 * it is undone. Needs root, to see physical pages and to change users.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>
#include <linux/kernel-page-flags.h>

#include "../kselftest.h"
#include "vm_util.h"

#ifndef MADV_MERGE
#define MADV_MERGE 26
#endif

#define SYSFS "/sys/kernel/mm/sksm/"

#define ANON (MAP_PRIVATE | MAP_ANONYMOUS)

static size_t page_size;
static int pagemap_fd;
static int kpageflags_fd;

static char *map_pages(size_t pages, int flags)
{
	char *map = mmap(NULL, pages * page_size, PROT_READ | PROT_WRITE, flags, -1, 0);

	if (map == MAP_FAILED)
		ksft_exit_fail_perror("mmap");
	if (flags & MAP_PRIVATE)
		madvise(map, pages * page_size, MADV_NOHUGEPAGE);
	return map;
}

static void unmap_pages(char *map, size_t pages)
{
	munmap(map, pages * page_size);
}

/* No two words of a page are equal, nor pages of different numbers. Number 0: zeros. */
static unsigned long word_of(unsigned long number, size_t at)
{
	return number ? number * 0x9e3779b9UL + at : 0;
}

static void fill(char *page, unsigned long number)
{
	unsigned long *words = (unsigned long *)page;

	for (size_t at = 0; at < page_size / sizeof(*words); at++)
		words[at] = word_of(number, at);
}

static bool holds(const char *page, unsigned long number)
{
	const unsigned long *words = (const unsigned long *)page;

	for (size_t at = 0; at < page_size / sizeof(*words); at++)
		if (words[at] != word_of(number, at))
			return false;
	return true;
}

/*
 * Success does not say that all merged: pages that somebody else uses at that moment
 * stay as they are. Compaction and the like do, so ask a few times.
 */
static int merge(char *start, size_t pages)
{
	for (int times = 0; times < 5; times++)
		if (madvise(start, pages * page_size, MADV_MERGE))
			return errno;
	return 0;
}

static int unmerge(char *start, size_t pages)
{
	return madvise(start, pages * page_size, MADV_UNMERGEABLE) ? errno : 0;
}

static unsigned long pfn(char *page)
{
	return pagemap_get_pfn(pagemap_fd, page);
}

static bool same_page(char *one, char *other)
{
	return pfn(one) != -1UL && pfn(one) == pfn(other);
}

static bool has_flag(char *page, int flag)
{
	unsigned long long flags;

	if (pread(kpageflags_fd, &flags, sizeof(flags), pfn(page) * sizeof(flags)) !=
	    sizeof(flags))
		return false;
	return flags & (1ULL << flag);
}

static bool read_setting(const char *path, char *value, size_t len)
{
	int fd = open(path, O_RDONLY);
	ssize_t count;

	if (fd < 0)
		return false;
	count = read(fd, value, len - 1);
	close(fd);
	if (count < 0)
		return false;
	value[count] = '\0';
	return true;
}

static bool write_setting(const char *path, const char *value)
{
	ssize_t len = strlen(value);
	int fd = open(path, O_WRONLY);
	bool written;

	if (fd < 0)
		return false;
	written = write(fd, value, len) == len;
	close(fd);
	return written;
}

/* The advice's number, which everybody may read. */
static bool offered(void)
{
	char number[16];

	return read_setting(SYSFS "advice", number, sizeof(number)) &&
	       atoi(number) == MADV_MERGE;
}

/* With sksm=off, or where the administrator says so. */
static bool is_off(void)
{
	char marks[64];

	return read_setting(SYSFS "domain", marks, sizeof(marks)) && strstr(marks, "[none]");
}

/* The classic check: objects with twins, a page of zeros, and one that is shared already. */

struct objects {
	char *shared;
	/* A page and its twin. */
	char *page[2];
	/* Two pages and their twins. */
	char *pair[2];
	char *zero;
	/* What the last touch left in the first word of each page, but for zeros. */
	unsigned long touched;
};

static const char * const steps[] = {
	"A: a shared mapping is left alone",
	"B: twins become one page, and zeros the zero page",
	"C: each write gets a page of its own",
	"D: they are merged again",
	"E: each write gets a page of its own again",
	"F: they are merged for a third time",
};

static void set_up(struct objects *objects)
{
	objects->shared = map_pages(2, MAP_SHARED | MAP_ANONYMOUS);
	fill(objects->shared, 1);
	fill(objects->shared + page_size, 1);
	for (int twin = 0; twin < 2; twin++) {
		objects->page[twin] = map_pages(1, ANON);
		fill(objects->page[twin], 1);
		objects->pair[twin] = map_pages(2, ANON);
		fill(objects->pair[twin], 2);
		fill(objects->pair[twin] + page_size, 3);
	}
	objects->zero = map_pages(1, ANON);
	fill(objects->zero, 0);
}

static bool holds_touched(const char *page, unsigned long number, unsigned long touched)
{
	const unsigned long *words = (const unsigned long *)page;

	if (!touched)
		return holds(page, number);
	if (words[0] != touched)
		return false;
	for (size_t at = 1; at < page_size / sizeof(*words); at++)
		if (words[at] != word_of(number, at))
			return false;
	return true;
}

static bool contents_kept(struct objects *objects)
{
	bool kept = holds(objects->shared, 1) && holds(objects->shared + page_size, 1);

	for (int twin = 0; twin < 2; twin++) {
		kept &= holds_touched(objects->page[twin], 1, objects->touched);
		kept &= holds_touched(objects->pair[twin], 2, objects->touched);
		kept &= holds_touched(objects->pair[twin] + page_size, 3, objects->touched);
	}
	return kept && holds(objects->zero, 0);
}

static bool left_alone(struct objects *objects)
{
	unsigned long first = pfn(objects->shared), second = pfn(objects->shared + page_size);

	return !merge(objects->shared, 2) && pfn(objects->shared) == first &&
	       pfn(objects->shared + page_size) == second && first != second &&
	       contents_kept(objects);
}

static bool merged(struct objects *objects)
{
	for (int twin = 0; twin < 2; twin++)
		if (merge(objects->page[twin], 1) || merge(objects->pair[twin], 2))
			return false;
	return !merge(objects->zero, 1) && same_page(objects->page[0], objects->page[1]) &&
	       has_flag(objects->page[0], KPF_KSM) &&
	       same_page(objects->pair[0], objects->pair[1]) &&
	       same_page(objects->pair[0] + page_size, objects->pair[1] + page_size) &&
	       has_flag(objects->zero, KPF_ZERO_PAGE) && contents_kept(objects);
}

static bool parted(struct objects *objects, unsigned long value)
{
	objects->touched = value;
	for (int twin = 0; twin < 2; twin++) {
		*(unsigned long *)objects->page[twin] = value;
		*(unsigned long *)objects->pair[twin] = value;
		*(unsigned long *)(objects->pair[twin] + page_size) = value;
	}
	*(unsigned long *)objects->zero = 0;
	return !same_page(objects->page[0], objects->page[1]) &&
	       !same_page(objects->pair[0], objects->pair[1]) &&
	       !same_page(objects->pair[0] + page_size, objects->pair[1] + page_size) &&
	       !has_flag(objects->zero, KPF_ZERO_PAGE) && contents_kept(objects);
}

static void classic(int stop, bool pause_between)
{
	struct objects objects = { 0 };

	set_up(&objects);
	for (int step = 0; step < (int)ARRAY_SIZE(steps); step++) {
		bool good;

		switch (step) {
		case 0:
			good = left_alone(&objects);
			break;
		case 2:
		case 4:
			good = parted(&objects, step);
			break;
		default:
			good = merged(&objects);
		}
		ksft_test_result(good, "step %s\n", steps[step]);
		if (step == stop) {
			ksft_print_msg("process %d waits for ever, to be looked at\n", getpid());
			for (;;)
				pause();
		}
		if (pause_between) {
			ksft_print_msg("process %d goes on at Enter\n", getpid());
			getchar();
		}
	}
}

/* What the call takes and what it refuses. */

static void refuses(void)
{
	char *map = map_pages(4, ANON);

	for (int page = 0; page < 4; page++)
		fill(map + page * page_size, 10);
	ksft_test_result(!merge(NULL, 0), "nothing to merge is no error\n");
	ksft_test_result(madvise(map + 1, page_size, MADV_MERGE) && errno == EINVAL,
			 "an address within a page is EINVAL\n");
	ksft_test_result(madvise(map, -page_size, MADV_MERGE) && errno == EINVAL,
			 "a range past the end of the address space is EINVAL\n");
	ksft_test_result(!madvise(map, page_size + 1, MADV_MERGE) &&
			 same_page(map, map + page_size),
			 "a length is rounded up to whole pages\n");
	unmap_pages(map + 2 * page_size, 1);
	ksft_test_result(merge(map, 4) == ENOMEM && same_page(map, map + 3 * page_size),
			 "a hole is ENOMEM, and what is around it merges\n");
	unmap_pages(map, 4);
}

static void takes_remote(void)
{
	int pidfd = syscall(SYS_pidfd_open, getpid(), 0);
	char *map = map_pages(2, ANON);
	struct iovec range = { .iov_base = map, .iov_len = 2 * page_size };
	ssize_t advised;

	fill(map, 11);
	fill(map + page_size, 11);
	advised = syscall(SYS_process_madvise, pidfd, &range, 1, MADV_MERGE, 0);
	ksft_test_result(advised == (ssize_t)(2 * page_size) && same_page(map, map + page_size),
			 "process_madvise() takes the advice\n");
	advised = syscall(SYS_process_madvise, pidfd, &range, 1, MADV_MERGE, 1);
	ksft_test_result(advised == -1 && errno == EINVAL, "flags are EINVAL\n");
	unmap_pages(map, 2);
	close(pidfd);
}

static void leaves_alone(void)
{
	char name[] = "/tmp/merge_tests.XXXXXX";
	int fd = mkstemp(name);
	char *file, *private, *map;

	if (fd < 0 || ftruncate(fd, 2 * page_size))
		ksft_exit_fail_perror("a file");
	unlink(name);
	file = mmap(NULL, 2 * page_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	private = mmap(NULL, 2 * page_size, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	if (file == MAP_FAILED || private == MAP_FAILED)
		ksft_exit_fail_perror("mmap of a file");
	fill(file, 12);
	fill(file + page_size, 12);
	ksft_test_result(!merge(file, 2) && !same_page(file, file + page_size),
			 "pages of a file stay as they are\n");
	fill(private, 0);
	fill(private + page_size, 13);
	merge(private, 2);
	/* The file changes below the process's own pages. */
	fill(file, 14);
	if (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 2 * page_size))
		ksft_print_msg("no holes in this file system\n");
	ksft_test_result(holds(private, 0) && holds(private + page_size, 13),
			 "private copies outlive the pages of their file, zeros too\n");
	munmap(private, 2 * page_size);
	munmap(file, 2 * page_size);
	close(fd);

	map = map_pages(2, ANON);
	ksft_test_result(!merge(map, 2) && !pagemap_is_populated(pagemap_fd, map),
			 "pages that are not there do not come by it\n");
	unmap_pages(map, 2);
}

static void keeps_contents(void)
{
	char *map = map_pages(3, ANON);
	int status = -1;
	pid_t pid;

	fill(map, 15);
	fill(map + page_size, 15);
	fill(map + 2 * page_size, 16);
	merge(map, 3);
	pid = fork();
	if (pid < 0)
		ksft_exit_fail_perror("fork");
	if (!pid) {
		bool good = holds(map, 15) && holds(map + page_size, 15);

		fill(map, 17);
		good &= holds(map, 17) && holds(map + page_size, 15);
		good &= !merge(map, 3) && holds(map + 2 * page_size, 16);
		_exit(!good);
	}
	waitpid(pid, &status, 0);
	ksft_test_result(!status && holds(map, 15) && holds(map + page_size, 15) &&
			 same_page(map, map + page_size),
			 "a child's writes and merges are its own\n");
	unmap_pages(map, 3);
}

/* Who shares with whom. */

/*
 * Whether @page is shared with a child that merges the same content after it has
 * become these users.
 */
static bool shared_with_child(char *page, unsigned long number, uid_t real, uid_t effective)
{
	char *theirs = map_pages(1, ANON);
	int ready[2], end[2], child_pagemap;
	unsigned long found = -1UL;
	char path[64], byte = 1;
	pid_t pid;

	if (pipe(ready) || pipe(end))
		ksft_exit_fail_perror("pipe");
	pid = fork();
	if (pid < 0)
		ksft_exit_fail_perror("fork");
	if (!pid) {
		close(ready[0]);
		close(end[1]);
		fill(theirs, number);
		byte = !setresuid(real, effective, effective) && !merge(theirs, 1);
		write(ready[1], &byte, 1);
		read(end[0], &byte, 1);
		_exit(0);
	}
	close(ready[1]);
	close(end[0]);
	if (read(ready[0], &byte, 1) != 1 || !byte)
		ksft_print_msg("a child could not merge\n");
	snprintf(path, sizeof(path), "/proc/%d/pagemap", pid);
	child_pagemap = open(path, O_RDONLY);
	if (child_pagemap >= 0) {
		found = pagemap_get_pfn(child_pagemap, theirs);
		close(child_pagemap);
	}
	close(end[1]);
	close(ready[0]);
	waitpid(pid, NULL, 0);
	unmap_pages(theirs, 1);
	return found != -1UL && found == pfn(page);
}

/* All marks are listed, the one in force in brackets. */
static char marks[64];
static pid_t changed_by;

static void restore_domain(void)
{
	char *name = strchr(marks, '[');

	/* Children leave it to their parent. */
	if (!name || getpid() != changed_by)
		return;
	name[strcspn(name, "]")] = '\0';
	write_setting(SYSFS "domain", name + 1);
	marks[0] = '\0';
}

static void domains(void)
{
	const uid_t nobody = 65534, other = 65533;
	char *mine = map_pages(1, ANON);

	fill(mine, 20);
	changed_by = getpid();
	if (!read_setting(SYSFS "domain", marks, sizeof(marks)) || atexit(restore_domain) ||
	    !write_setting(SYSFS "domain", "user"))
		ksft_exit_fail_msg("cannot set " SYSFS "domain\n");
	merge(mine, 1);
	ksft_test_result(shared_with_child(mine, 20, 0, 0), "a user shares with himself\n");
	ksft_test_result(!shared_with_child(mine, 20, nobody, nobody),
			 "users are apart from each other\n");
	ksft_test_result(!shared_with_child(mine, 20, other, 0),
			 "who is two users shares with nobody\n");
	unmap_pages(mine, 1);

	mine = map_pages(1, ANON);
	fill(mine, 21);
	write_setting(SYSFS "domain", "global");
	merge(mine, 1);
	ksft_test_result(shared_with_child(mine, 21, nobody, nobody),
			 "in a global domain users share with each other\n");
	unmap_pages(mine, 1);

	mine = map_pages(2, ANON);
	fill(mine, 22);
	fill(mine + page_size, 22);
	write_setting(SYSFS "domain", "none");
	ksft_test_result(!merge(mine, 2) && !same_page(mine, mine + page_size),
			 "in no domain nothing merges\n");
	unmap_pages(mine, 2);
	restore_domain();
}

/* Undoing it. */

static void undone(void)
{
	char *map = map_pages(3, ANON);
	bool were;

	fill(map, 30);
	fill(map + page_size, 30);
	fill(map + 2 * page_size, 0);
	merge(map, 3);
	were = same_page(map, map + page_size) && has_flag(map + 2 * page_size, KPF_ZERO_PAGE);
	ksft_test_result(were && !unmerge(map, 3) && !same_page(map, map + page_size) &&
			 !has_flag(map, KPF_KSM) && !has_flag(map + 2 * page_size, KPF_ZERO_PAGE) &&
			 holds(map, 30) && holds(map + page_size, 30) &&
			 holds(map + 2 * page_size, 0),
			 "MADV_UNMERGEABLE gives every page a page of its own\n");
	merge(map, 3);
	were = same_page(map, map + page_size);
	ksft_test_result(were && write_setting(SYSFS "unmerge", "1") &&
			 !same_page(map, map + page_size) && holds(map, 30) &&
			 holds(map + page_size, 30),
			 "so does writing to unmerge, in all processes\n");
	unmap_pages(map, 3);
}

static void usage(const char *program)
{
	printf("Usage: %s [-s STEP] [-p]\n"
	       " -s: stop after this step of the classic check, A to F, and wait for ever\n"
	       " -p: wait for Enter between its steps\n", program);
}

int main(int argc, char **argv)
{
	bool pause_between = false;
	int option, stop = -1;

	while ((option = getopt(argc, argv, "s:ph")) != -1) {
		switch (option) {
		case 's':
			stop = (optarg[0] | 0x20) - 'a';
			if (!optarg[0] || optarg[1] || stop < 0 || stop >= (int)ARRAY_SIZE(steps)) {
				fprintf(stderr, "-s takes a letter from A to F\n");
				return KSFT_FAIL;
			}
			break;
		case 'p':
			pause_between = true;
			break;
		default:
			usage(argv[0]);
			return option == 'h' ? KSFT_PASS : KSFT_FAIL;
		}
	}

	ksft_print_header();
	if (!offered())
		ksft_exit_skip("this kernel has no MADV_MERGE\n");
	if (geteuid())
		ksft_exit_skip("it takes root to see physical pages\n");
	page_size = getpagesize();
	pagemap_fd = open("/proc/self/pagemap", O_RDONLY);
	kpageflags_fd = open("/proc/kpageflags", O_RDONLY);
	if (pagemap_fd < 0 || kpageflags_fd < 0)
		ksft_exit_skip("it takes /proc/self/pagemap and /proc/kpageflags\n");

	if (is_off())
		ksft_exit_skip("merging is off: sksm=off, or none in " SYSFS "domain\n");

	ksft_set_plan(ARRAY_SIZE(steps) + 18);
	classic(stop, pause_between);
	refuses();
	takes_remote();
	leaves_alone();
	keeps_contents();
	domains();
	undone();
	ksft_finished();
}
