/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * A kernel where MADV_MERGE's number throws pages away: madvise() of this program takes the place of the C library's, and so does
 * statfs(), with which the library looks for the engine, when an argument is given: then nothing can be seen.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <sksm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#define MADV_MERGE 26

int madvise(void *addr, size_t len, int advice)
{
	return syscall(SYS_madvise, addr, len, advice == MADV_MERGE ? MADV_DONTNEED : advice);
}

static int hidden;

int statfs(const char *path, struct statfs *found)
{
	if (!hidden)
		return syscall(SYS_statfs, path, found);
	errno = EACCES;
	return -1;
}

int main(int argc, char **argv)
{
	const size_t len = 1 << 20;
	unsigned char *data = malloc(len);
	int lost = 0;

	(void)argv;
	hidden = argc > 1;
	if (!data)
		return 1;
	memset(data, 7, len);
	if (sksm_merge(data, len) != -ENOSYS || sksm_get_support() == SKSM_SUPPORT_MERGE) {
		fprintf(stderr, "believed the number\n");
		return 1;
	}
	if (sksm_merge_process(0, SKSM_HEAP | SKSM_DATA, NULL) != -ENOSYS) {
		fprintf(stderr, "believed the number for the process\n");
		return 1;
	}
	for (size_t i = 0; i < len; i++)
		lost += data[i] != 7;
	if (lost)
		fprintf(stderr, "%d bytes were lost\n", lost);
	free(data);
	return lost != 0;
}
