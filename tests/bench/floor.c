/* The floor: inserts the rows of a cdrd database into a fresh one of the same schema, one row a
 * statement, 1,000 rows a transaction, synchronous FULL. The rows are in memory before the clock
 * starts. Usage: floor SOURCE TARGET; prints seconds and CPU seconds. */

#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { BATCH = 1000 };

static sqlite3 *source, *target;

static void check(int code, sqlite3 *database)
{
    if (code == SQLITE_OK || code == SQLITE_ROW || code == SQLITE_DONE)
        return;
    fprintf(stderr, "floor: %s\n", sqlite3_errmsg(database));
    exit(1);
}

static void run(const char *statement)
{
    check(sqlite3_exec(target, statement, NULL, NULL, NULL), target);
}

static sqlite3_stmt *prepare(sqlite3 *database, const char *text)
{
    sqlite3_stmt *statement;
    check(sqlite3_prepare_v2(database, text, -1, &statement, NULL), database);
    return statement;
}

static double clock_of(clockid_t which)
{
    struct timespec now;
    clock_gettime(which, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static void make_schema(void)
{
    run("PRAGMA page_size = 16384; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL");
    sqlite3_stmt *objects = prepare(
        source, "SELECT sql FROM sqlite_schema WHERE tbl_name = 'call' AND sql IS NOT NULL");
    while (sqlite3_step(objects) == SQLITE_ROW)
        run((const char *)sqlite3_column_text(objects, 0));
    sqlite3_finalize(objects);
}

int main(int count, char **arguments)
{
    if (count != 3)
        return 2;
    check(sqlite3_open_v2(arguments[1], &source, SQLITE_OPEN_READONLY, NULL), source);
    check(sqlite3_open(arguments[2], &target), target);
    make_schema();

    sqlite3_stmt *number = prepare(source, "SELECT count(*) FROM call");
    sqlite3_step(number);
    size_t rows = (size_t)sqlite3_column_int64(number, 0);
    sqlite3_finalize(number);
    sqlite3_stmt *select = prepare(source, "SELECT * FROM call ORDER BY seq");
    int columns = sqlite3_column_count(select);
    sqlite3_value **values = malloc(rows * (size_t)columns * sizeof *values);
    sqlite3_value **value = values;
    while (sqlite3_step(select) == SQLITE_ROW)
        for (int column = 0; column < columns; column++)
            *value++ = sqlite3_value_dup(sqlite3_column_value(select, column));
    sqlite3_finalize(select);

    char text[1024] = "INSERT INTO call VALUES (?";
    for (int column = 1; column < columns; column++)
        strcat(text, ", ?");
    sqlite3_stmt *insert = prepare(target, strcat(text, ")"));
    double began = clock_of(CLOCK_MONOTONIC), used = clock_of(CLOCK_PROCESS_CPUTIME_ID);
    value = values;
    for (size_t row = 0; row < rows; row++) {
        if (row % BATCH == 0)
            run("BEGIN IMMEDIATE");
        for (int column = 0; column < columns; column++)
            check(sqlite3_bind_value(insert, column + 1, *value++), target);
        check(sqlite3_step(insert), target);
        sqlite3_reset(insert);
        if (row % BATCH == BATCH - 1 || row == rows - 1)
            run("COMMIT");
    }
    printf("{\"rows\": %zu, \"seconds\": %f, \"cpu_seconds\": %f}\n", rows,
           clock_of(CLOCK_MONOTONIC) - began, clock_of(CLOCK_PROCESS_CPUTIME_ID) - used);
    return 0;
}
