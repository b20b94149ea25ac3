/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Builds a table that every worker builds the same, and merges it:
 * cc table.c $(pkg-config --cflags --libs sksm)
 */
#include <sksm.h>
#include <stdio.h>
#include <stdlib.h>

int main(void)
{
	const size_t len = 4 << 20;
	unsigned char *table = malloc(len);
	uint64_t before, after;
	int status;

	if (!table)
		return 1;
	for (size_t i = 0; i < len; i++)
		table[i] = i >> 12;

	if (sksm_merged_bytes(0, &before))
		return 1;
	status = sksm_merge(table, len);
	if (sksm_merged_bytes(0, &after))
		return 1;
	printf("merge: %s\n", sksm_explain(status));
	printf("%lld KiB more are merged\n", (long long)(after - before) / 1024);

	/* Merging never changes what memory contains. */
	for (size_t i = 0; i < len; i++)
		if (table[i] != (unsigned char)(i >> 12))
			return 1;
	free(table);
	return status && sksm_get_support() == SKSM_SUPPORT_MERGE;
}
