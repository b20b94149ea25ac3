/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Calls every function of sksm.h and checks what it promises, on a kernel with SKSM and on others. It names what is wrong, and then
 * ends with 1.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sksm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define MADV_MERGE 26

static int failures;
static int merges;
static size_t page;

#define CHECK(condition)                                                       \
	do {                                                                   \
		if (!(condition)) {                                            \
			fprintf(stderr, "line %d: %s\n", __LINE__, #condition); \
			failures++;                                            \
		}                                                              \
	} while (0)

/* What a merge of good memory returns. */
static int merged(void)
{
	return merges ? 0 : -ENOSYS;
}

static uint64_t merged_bytes(pid_t pid)
{
	uint64_t bytes = 0;

	CHECK(sksm_merged_bytes(pid, &bytes) == 0);
	return bytes;
}

/* Pages with the same content throughout. */
static unsigned char *pages(size_t count, int content)
{
	unsigned char *start = mmap(NULL, count * page, PROT_READ | PROT_WRITE,
				    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (start == MAP_FAILED) {
		perror("mmap");
		exit(1);
	}
	madvise(start, count * page, MADV_NOHUGEPAGE);
	memset(start, content, count * page);
	return start;
}

/* Whether a line of smaps, of the mapping at this address, has this word in it. */
static int smaps_says(const void *addr, const char *line_start, const char *word)
{
	FILE *smaps = fopen("/proc/self/smaps", "r");
	char line[4096];
	int inside = 0, says = 0;

	while (smaps && fgets(line, sizeof(line), smaps)) {
		unsigned long start, end;

		if (sscanf(line, "%lx-%lx ", &start, &end) == 2)
			inside = start <= (uintptr_t)addr && (uintptr_t)addr < end;
		if (inside && !strncmp(line, line_start, strlen(line_start)))
			says |= strstr(line, word) != NULL;
	}
	if (smaps)
		fclose(smaps);
	return says;
}

static void merging(void)
{
	unsigned char *data = pages(4, 1);
	uint64_t before = merged_bytes(0);

	/* Rounded inward: two pages of the four. */
	CHECK(sksm_merge(data + 1, 3 * page) == merged());
	CHECK(merged_bytes(0) - before == (merges ? 2 * page : 0));
	CHECK(sksm_merge(data + 1, page) == 0);
	CHECK(sksm_merge(data, 0) == 0);
	CHECK(sksm_merge((void *)UINTPTR_MAX, 2) == -EINVAL);

	CHECK(sksm_merge_exact(data + 1, page) == (merges ? -EINVAL : -ENOSYS));
	CHECK(sksm_merge_exact(data, 4 * page) == merged());
	CHECK(merged_bytes(0) - before == (merges ? 4 * page : 0));
	for (size_t i = 0; i < 4 * page; i++)
		if (data[i] != 1)
			failures++;
	munmap(data + page, page);
	CHECK(sksm_merge_exact(data, 4 * page) == (merges ? -ENOMEM : -ENOSYS));
	munmap(data, 4 * page);
}

/* Whatever had merged them: on other kernels there is nothing to undo, and only KSM takes the call. */
static void unmerging(void)
{
	int undone = sksm_get_support() == SKSM_SUPPORT_NONE ? -ENOSYS : 0;
	unsigned char *data = pages(4, 6);
	uint64_t before = merged_bytes(0);
	size_t advised = 1;

	CHECK(sksm_merge_exact(data, 4 * page) == merged());
	CHECK(merged_bytes(0) - before == (merges ? 4 * page : 0));
	/* Rounded outward: a byte of each of two pages. */
	CHECK(sksm_unmerge(data + 2 * page - 1, 2) == undone);
	CHECK(merged_bytes(0) - before == (merges ? 2 * page : 0));
	CHECK(sksm_unmerge(data + 1, 0) == 0);
	CHECK(sksm_unmerge((void *)UINTPTR_MAX, 2) == -EINVAL);
	CHECK(sksm_unmerge_exact(data + 1, page) == (merges ? -EINVAL : -ENOSYS));
	CHECK(sksm_unmerge_exact(data, 4 * page) == undone);
	CHECK(merged_bytes(0) == before);

	CHECK(sksm_merge_exact(data, 4 * page) == merged());
	CHECK(sksm_unmerge_process(0, &advised) == undone);
	CHECK(undone ? advised == 0 : advised >= 4 * page);
	CHECK(merges ? merged_bytes(0) == 0 : 1);
	CHECK(sksm_unmerge_process(0, NULL) == undone);
	for (size_t i = 0; i < 4 * page; i++)
		if (data[i] != 6)
			failures++;
	munmap(data, 4 * page);
}

static void ksm(void)
{
	unsigned char *data = pages(4, 2);
	int expected = sksm_get_support() == SKSM_SUPPORT_NONE ? -ENOSYS : 0;

	CHECK(!smaps_says(data, "VmFlags:", " mg"));
	/* SKSM kernels of the tests have KSM; others may not. */
	if (!merges || !sksm_advise_ksm(data, 4 * page)) {
		CHECK(sksm_advise_ksm(data, 4 * page) == expected);
		CHECK(smaps_says(data, "VmFlags:", " mg") == !expected);
	}
	CHECK(sksm_advise_ksm(data, page - 1) == 0);
	CHECK(sksm_advise_ksm((void *)UINTPTR_MAX, 2) == -EINVAL);
	/* No object is so long. */
	CHECK(sksm_advise_ksm((void *)page, (size_t)SSIZE_MAX + 1) < 0);
	munmap(data, 4 * page);
}

/* Every merge is refused from here on. */
static void refuse_merges(void)
{
	struct sock_filter filter[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_madvise, 0, 3),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[2])),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, MADV_MERGE, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOMEM),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { sizeof(filter) / sizeof(*filter), filter };

	CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
	CHECK(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0);
}

static void own_process(void)
{
	unsigned char *data = pages(4, 3);
	uint64_t before = merged_bytes(0);
	size_t advised = 1;

	CHECK(sksm_merge_process(0, SKSM_HEAP, &advised) == merged());
	CHECK(merges ? advised >= 4 * page : advised == 0);
	CHECK(merges ? merged_bytes(0) >= before + 4 * page : 1);
	CHECK(sksm_merge_process(0, SKSM_TEXT | SKSM_DATA | SKSM_HEAP | SKSM_STACK, NULL) == merged());
	for (unsigned int kinds = 0; kinds < 64; kinds += 16) {
		advised = 1;
		CHECK(sksm_merge_process(0, kinds, &advised) == -EINVAL);
		CHECK(advised == 0);
	}
	CHECK(sksm_merged_bytes(0, NULL) == -EFAULT);
	munmap(data, 4 * page);

	pid_t child = fork();

	if (!child) {
		failures = 0;
		refuse_merges();
		advised = 1;
		CHECK(sksm_merge_process(0, SKSM_HEAP, &advised) == (merges ? -ENOMEM : -ENOSYS));
		CHECK(advised == 0);
		_exit(failures);
	}
	int status = -1;

	waitpid(child, &status, 0);
	CHECK(status == 0);
}

static void other_process(void)
{
	int ready[2], go[2], status = -1;
	uint64_t bytes;
	size_t advised = 1;

	CHECK(pipe(ready) == 0 && pipe(go) == 0);
	pid_t child = fork();

	if (!child) {
		unsigned char *data = pages(8, 4);
		char byte = 0;
		int good = write(ready[1], &byte, 1) == 1;

		close(go[1]);
		/* Until the other end is closed. */
		good &= read(go[0], &byte, 1) == 0;
		for (size_t i = 0; i < 8 * page; i++)
			good &= data[i] == 4;
		_exit(!good);
	}
	char byte;

	CHECK(read(ready[0], &byte, 1) == 1);
	uint64_t before = merged_bytes(child);
	int result = sksm_merge_process(child, SKSM_HEAP, &advised);

	/* Only the user root may, where anybody can. */
	if (geteuid() == 0 || !merges)
		CHECK(result == merged());
	else
		CHECK(result == -EPERM);
	CHECK(result ? advised == 0 : advised >= 8 * page);
	CHECK(result ? 1 : merged_bytes(child) >= before + 8 * page);
	/* Of another process only a kernel with SKSM undoes anything. */
	result = sksm_unmerge_process(child, &advised);
	if (merges)
		CHECK(result == (geteuid() == 0 ? 0 : -EPERM));
	else
		CHECK(result == -ENOSYS || result == -EPERM);
	CHECK(result ? advised == 0 : advised >= 8 * page);
	CHECK(result ? 1 : merged_bytes(child) == 0);
	close(go[1]);
	waitpid(child, &status, 0);
	CHECK(status == 0);

	advised = 1;
	CHECK(sksm_merge_process(child, SKSM_HEAP, &advised) == -ESRCH);
	CHECK(advised == 0);
	CHECK(sksm_merge_process(-1, SKSM_HEAP, NULL) == -ESRCH);
	advised = 1;
	CHECK(sksm_unmerge_process(child, &advised) == -ESRCH);
	CHECK(advised == 0);
	CHECK(sksm_unmerge_process(-1, NULL) == -ESRCH);
	CHECK(sksm_merged_bytes(child, &bytes) == -ESRCH);
	CHECK(sksm_merged_bytes(-1, &bytes) == -ESRCH);
}

#ifdef __x86_64__
__asm__(".pushsection .text.answer,\"ax\",@progbits\n"
	".balign 4096\n"
	"answer_code:\n"
	"answer: movl $1, %eax\n"
	"ret\n"
	".balign 4096\n"
	".popsection\n");
int answer(void);
extern char answer_code[];

static void patching(void)
{
	char *number = answer_code + 1;
	const int seven = 7, eight = 8;
	char line[64];

	snprintf(line, sizeof(line), "%lx-", (unsigned long)(uintptr_t)answer_code);
	CHECK(answer() == 1);
	CHECK(sksm_patch(number, &seven, sizeof(seven), 0) == 0);
	CHECK(answer() == 7);
	uint64_t before = merged_bytes(0);

	CHECK(sksm_patch(number, &eight, sizeof(eight), 1) == merged());
	CHECK(answer() == 8);
	CHECK(merged_bytes(0) - before == (merges ? page : 0));
	CHECK(smaps_says(answer_code, "", " r-xp "));
	CHECK(!smaps_says(answer_code, "", "rwxp"));
	CHECK(sksm_patch(number, NULL, 4, 0) == -EFAULT);
	CHECK(sksm_patch(number, &seven, SIZE_MAX, 0) == -EFAULT);
	CHECK(sksm_patch((void *)page, &seven, 4, 0) == -EFAULT);
	CHECK(answer() == 8);
}
#else
static void patching(void)
{
}
#endif

static void explaining(void)
{
	const int known[] = { ENOSYS, EINVAL, ENOMEM, EAGAIN, EINTR, EPERM, EACCES, ESRCH, EFAULT };
	const char *other = sksm_explain(-EXDEV);

	CHECK(!strcmp(sksm_explain(0), "done"));
	for (size_t i = 0; i < sizeof(known) / sizeof(*known); i++)
		CHECK(strcmp(sksm_explain(-known[i]), other));
	CHECK(strstr(sksm_explain(-ENOSYS), "MADV_MERGE") != NULL);
	CHECK(strstr(sksm_explain(-EINVAL), "MADV_MERGE") == NULL);
	CHECK(!strcmp(sksm_explain(INT_MIN), other));
	CHECK(!strcmp(sksm_explain(INT_MAX), other));
}

int main(void)
{
	int support = sksm_get_support();

	page = sysconf(_SC_PAGESIZE);
	merges = support == SKSM_SUPPORT_MERGE;
	CHECK(support >= SKSM_SUPPORT_MERGE && support <= SKSM_SUPPORT_NONE);
	/* As the kernel says itself. */
	CHECK(merges == !access("/sys/kernel/mm/sksm", F_OK));
	CHECK(!strcmp(sksm_version(), SKSM_VERSION));
	CHECK(SKSM_VERSION_MAJOR >= 0 && SKSM_VERSION_MINOR >= 0 && SKSM_VERSION_PATCH >= 0);
	merging();
	unmerging();
	ksm();
	own_process();
	other_process();
	patching();
	explaining();
	if (!failures)
		printf("every function does as it says; merging is %s\n", merges ? "there" : "refused");
	return failures != 0;
}
