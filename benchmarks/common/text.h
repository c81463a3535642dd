/*
 * Words and numbers of the command line and of tables: types, operations, sizes. Any thread.
 */
#ifndef BENCHMARKS_COMMON_TEXT_H
#define BENCHMARKS_COMMON_TEXT_H

#include <hora/hora.h>
#include <stdbool.h>
#include <stdio.h>

/* "64", "4K", "1m", "2G" (binary) into bytes. */
bool text_size(const char *text, size_t *bytes_p);
/* A type by hora's name or by nccl-tests' ("float", "half", "double"). */
bool text_dtype(const char *text, hora_dtype_t *dtype_p);
/* An operation by hora's name or by nccl-tests' ("prod", "avg"). */
bool text_op(const char *text, hora_op_t *op_p);
/* nccl-tests' names where it has one, else hora's, so that its tools read our tables. */
const char *text_dtype_name(hora_dtype_t dtype);
const char *text_op_name(hora_op_t op); /* "none" for a value that is no operation */
/* "1.5K", "64M": at most 6 characters and the end. */
void text_bytes(char *buf, size_t size, double bytes);
/* A string in quotes, with what JSON wants escaped. */
void text_json(FILE *file, const char *text);

#endif
