/* Client and worker with libgearman. */
#include <libgearman/gearman.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char workload[32];

static void check(gearman_return_t status, const char *what) {
    if (gearman_success(status)) return;
    fprintf(stderr, "%s: %s\n", what, gearman_strerror(status));
    exit(1);
}

static void say(const char *word) {
    puts(word);
    fflush(stdout);
}

static void end(void) {
    say("end");
    while (getchar() != EOF) continue;
}

static void submit_one(gearman_client_st *client) {
    size_t size;
    gearman_return_t status;
    free(gearman_client_do(client, "load", NULL, workload, sizeof workload, &size, &status));
    check(status, "a job");
}

static void submit(in_port_t port, long jobs, long outstanding) {
    gearman_client_st *client = gearman_client_create(NULL);
    check(gearman_client_add_server(client, "127.0.0.1", port), "the server");
    submit_one(client);
    say("begin");
    if (outstanding == 1)
        for (long i = 0; i < jobs; i++) submit_one(client);
    else
        for (long left = jobs; left > 0; left -= outstanding) {
            gearman_return_t status;
            for (long i = 0; i < outstanding && i < left; i++) {
                gearman_client_add_task(client, NULL, NULL, "load", NULL, workload, sizeof workload, &status);
                check(status, "a job");
            }
            check(gearman_client_run_tasks(client), "jobs");
            gearman_client_task_free_all(client);
        }
    end();
}

static void *give_back(gearman_job_st *job, void *context, size_t *size, gearman_return_t *status) {
    (void)context;
    *size = gearman_job_workload_size(job);
    *status = GEARMAN_SUCCESS;
    void *result = malloc(*size); /* which the library frees */
    return result ? memcpy(result, gearman_job_workload(job), *size) : NULL;
}

static void *take(gearman_job_st *job, void *context, size_t *size, gearman_return_t *status) {
    end();
    return give_back(job, context, size, status);
}

static void work(in_port_t port, long count, gearman_worker_fn *function) {
    gearman_worker_st *worker = gearman_worker_create(NULL);
    check(gearman_worker_add_server(worker, "127.0.0.1", port), "the server");
    for (long i = 1; i <= count; i++) {
        char name[32] = "load";
        if (i < count) snprintf(name, sizeof name, "load-%ld", i);
        check(gearman_worker_add_function(worker, name, 0, function, NULL), "a function");
    }
    for (;;) check(gearman_worker_work(worker), "working");
}

int main(int count, char **words) {
    const char *mode = count > 1 ? words[1] : "";
    long numbers[3] = { 0 };
    for (int i = 2; i < count && i < 5; i++) numbers[i - 2] = atol(words[i]);
    in_port_t port = (in_port_t)numbers[0];
    if (!strcmp(mode, "version")) printf("libgearman %s\n", gearman_version());
    else if (!strcmp(mode, "client")) submit(port, numbers[1], numbers[2]);
    else if (!strcmp(mode, "worker")) work(port, 1, give_back);
    else if (!strcmp(mode, "functions")) {
        say("begin");
        work(port, numbers[1], take);
    } else return 2;
    return 0;
}
