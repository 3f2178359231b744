// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 OR BSD-3-Clause
/*
 * Reads one operation a line, a letter and numbers, carries it out with ecs_policy.h, and prints the
 * result and all books after it. tests/parity.rs does the same with ecs-policy and compares.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include <linux/types.h>

#define EACH(i, nr)	for ((i) = 0; (i) < (nr); (i)++)

static __u64 next_number(void)
{
	uint64_t number;

	if (scanf("%" SCNu64, &number) != 1)
		exit(2);
	return number;
}

static void show(__u64 number)
{
	printf(" %" PRIu64, (uint64_t)number);
}

static void refuse(void)
{
	exit(3);
}

#include "ops.h"

int main(void)
{
	char op;

	start_books();
	while (scanf(" %c", &op) == 1) {
		apply(op);
		printf("\n");
	}
	return 0;
}
