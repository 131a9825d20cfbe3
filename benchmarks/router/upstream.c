/* An upstream that costs next to nothing: one thread, epoll, answers made before the first request.
 *
 *     upstream PORT
 *
 * POST …/chat/completions   an OpenAI answer; with "stream":true in the body its server-sent events
 * POST /generate            LoRAX's native answer with a log-probability for each token
 * GET  /__set?delay=MS&gap=MS   from now on: wait so long before an answer, and so long between two events
 * GET  /__count             how many POSTs came so far
 *
 * It reads as much of HTTP/1.1 as proxies send: content-length or chunked bodies, keep-alive, one request at a time on
 * a connection.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { ROOM = 65536, CONNECTIONS = 8192, EVENTS = 20, TOKENS = 64 };

#define MODEL "bench-model"
#define OK_JSON "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nx-request-id: bench\r\nContent-Length: %d\r\n\r\n%s"
/* What is answered, as it stands inside a JSON string: the form that the benchmark's policy wants. About 300 characters. */
#define TEXT \
    "{\\\"label\\\": \\\"refund_request\\\", \\\"reason\\\": \\\"The customer writes that parcel 48213 has not arrived and asks for " \
    "the money back. Nothing is said about damage, a wrong address or a changed order, so a late delivery with a refund is the " \
    "only reading that fits, and the tone is calm enough to answer by mail.\\\"}"

typedef struct {
    char *data;
    size_t length;
    int is_open, next; /* next: -1 idle, 0 the head is due, above that the event that is due */
    int form;          /* which of the answers */
    uint32_t generation;
} Connection;
typedef struct {
    int64_t due;
    int fd;
    uint32_t generation;
} Timer;
enum { CHAT, STREAM, NATIVE };

static Connection connections[CONNECTIONS];
static Timer heap[CONNECTIONS * 4];
static int timers, delay_ms, gap_ms;
static unsigned long posts;
static char chat[4096], native[16384], stream_head[512], events[EVENTS + 1][1024];
static int chat_length, native_length, head_length, event_lengths[EVENTS + 1];

static int64_t now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

static void push(int64_t due, int fd) {
    if (timers == CONNECTIONS * 4) {
        fprintf(stderr, "too many timers\n");
        exit(1);
    }
    int i = timers++;
    for (; i && heap[(i - 1) / 2].due > due; i = (i - 1) / 2) heap[i] = heap[(i - 1) / 2];
    heap[i] = (Timer){due, fd, connections[fd].generation};
}

static Timer pop(void) {
    Timer top = heap[0], last = heap[--timers];
    int i = 0;
    for (int child; (child = 2 * i + 1) < timers; i = child) {
        if (child + 1 < timers && heap[child + 1].due < heap[child].due) child++;
        if (last.due <= heap[child].due) break;
        heap[i] = heap[child];
    }
    heap[i] = last;
    return top;
}

static void drop(int fd) {
    Connection *c = &connections[fd];
    if (!c->is_open) return;
    c->is_open = 0;
    c->length = 0;
    c->generation++; /* its timers mean nobody now */
    close(fd);
}

static void put(int fd, const char *data, size_t length) { /* small answers: the socket's buffer takes them */
    while (length) {
        ssize_t n = write(fd, data, length);
        if (n < 0 && (errno == EAGAIN || errno == EINTR)) continue;
        if (n < 0) {
            drop(fd);
            return;
        }
        data += n;
        length -= n;
    }
}

static void answer(int fd) { /* the answer, or its next event, is due */
    Connection *c = &connections[fd];
    if (c->form == CHAT) put(fd, chat, chat_length);
    if (c->form == NATIVE) put(fd, native, native_length);
    if (c->form == STREAM) {
        if (c->next == 0) put(fd, stream_head, head_length);
        while (c->is_open && c->next <= EVENTS) {
            put(fd, events[c->next], event_lengths[c->next]);
            c->next++;
            if (gap_ms && c->next <= EVENTS) {
                push(now_us() + gap_ms * 1000LL, fd);
                return;
            }
        }
    }
    c->next = -1;
}

static void control(int fd, const char *line) {
    char body[96], out[256];
    const char *found;
    if (!strncmp(line, "GET /__set", 10)) {
        if ((found = strstr(line, "delay="))) delay_ms = atoi(found + 6);
        if ((found = strstr(line, "gap="))) gap_ms = atoi(found + 4);
    }
    snprintf(body, sizeof body, "{\"posts\": %lu, \"delay\": %d, \"gap\": %d}", posts, delay_ms, gap_ms);
    put(fd, out, snprintf(out, sizeof out, OK_JSON, (int)strlen(body), body));
}

/* Length of the body behind a head of `head` bytes, -1 while it is not whole. */
static long body_length(Connection *c, size_t head) {
    char *end = c->data + head, *found;
    char kept = end[-1];
    end[-1] = 0;
    char *length = strcasestr(c->data, "\r\ncontent-length:");
    char *chunked = strcasestr(c->data, "\r\ntransfer-encoding:");
    end[-1] = kept;
    long body = length ? strtol(length + 17, NULL, 10) : 0;
    if (chunked) {
        found = memmem(end - 2, c->length - head + 2, "\r\n0\r\n\r\n", 7);
        if (!found) return -1;
        body = found + 7 - end;
    }
    return c->length - head >= (size_t)body ? body : -1;
}

static int form_of(Connection *c, size_t head, size_t body) {
    if (!strncmp(c->data, "POST /generate ", 15)) return NATIVE;
    char *text = c->data + head;
    int is_stream = memmem(text, body, "\"stream\":true", 13) || memmem(text, body, "\"stream\": true", 14);
    return is_stream ? STREAM : CHAT;
}

static void consume(int fd) {
    Connection *c = &connections[fd];
    while (c->is_open && c->next < 0 && c->length) {
        c->data[c->length] = 0;
        char *end = memmem(c->data, c->length, "\r\n\r\n", 4);
        if (!end) return;
        size_t head = end - c->data + 4;
        long body = body_length(c, head);
        if (body < 0) return;
        int is_post = c->data[0] == 'P';
        if (is_post) {
            posts++;
            c->form = form_of(c, head, body);
            c->next = 0;
        } else {
            control(fd, c->data);
        }
        c->length -= head + body;
        memmove(c->data, c->data + head + body, c->length);
        if (is_post && delay_ms) push(now_us() + delay_ms * 1000LL, fd);
        else if (is_post) answer(fd);
    }
}

static void make_answers(void) {
    static char body[16384];
    const char *usage = "{\"prompt_tokens\":200,\"completion_tokens\":64,\"total_tokens\":264}";
    int n = snprintf(body, sizeof body,
        "{\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion\",\"created\":1700000000,\"model\":\"" MODEL "\",\"choices\":[{\"index\":0,"
        "\"message\":{\"role\":\"assistant\",\"content\":\"" TEXT "\"},\"logprobs\":null,\"finish_reason\":\"stop\"}],"
        "\"usage\":%s,\"system_fingerprint\":\"fp_bench\"}", usage);
    chat_length = snprintf(chat, sizeof chat, OK_JSON, n, body);

    n = snprintf(body, sizeof body,
        "{\"generated_text\":\"" TEXT "\",\"details\":{\"finish_reason\":\"eos_token\",\"prompt_tokens\":200,\"generated_tokens\":%d,"
        "\"seed\":null,\"prefill\":[],\"tokens\":[", TOKENS);
    for (int i = 0; i < TOKENS; i++)
        n += snprintf(body + n, sizeof body - n, "%s{\"id\":%d,\"text\":\" word\",\"logprob\":-0.001,\"special\":false}", i ? "," : "", 1000 + i);
    n += snprintf(body + n, sizeof body - n, "]}}");
    native_length = snprintf(native, sizeof native, OK_JSON, n, body);

    head_length = snprintf(stream_head, sizeof stream_head,
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nCache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n");
    for (int i = 0; i < EVENTS; i++) {
        n = snprintf(body, sizeof body,
            "data: {\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,\"model\":\"" MODEL "\",\"choices\":"
            "[{\"index\":0,\"delta\":{%s\"content\":\"piece %d and \"},\"finish_reason\":%s}]}\n\n",
            i ? "" : "\"role\":\"assistant\",", i, i == EVENTS - 1 ? "\"stop\"" : "null");
        event_lengths[i] = snprintf(events[i], sizeof events[i], "%x\r\n%s\r\n", n, body);
    }
    event_lengths[EVENTS] = snprintf(events[EVENTS], sizeof events[EVENTS], "e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n");
}

static int listening(int port) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (bind(fd, (void *)&at, sizeof at) || listen(fd, 1024)) {
        perror("upstream");
        exit(1);
    }
    return fd;
}

static void welcome(int epoll, int listener) {
    int fd, one = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        if (fd >= CONNECTIONS) {
            close(fd);
            continue;
        }
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        Connection *c = &connections[fd];
        if (!c->data) c->data = malloc(ROOM + 1);
        c->is_open = 1;
        c->length = 0;
        c->next = -1;
        struct epoll_event wanted = {.events = EPOLLIN, .data.fd = fd};
        epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &wanted);
    }
}

static void take(int fd) {
    Connection *c = &connections[fd];
    ssize_t n = c->length < ROOM ? read(fd, c->data + c->length, ROOM - c->length) : 0;
    if (n > 0) {
        c->length += n;
        consume(fd);
    } else if (n == 0 || (errno != EAGAIN && errno != EINTR)) {
        drop(fd);
    }
}

int main(int argc, char **argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: upstream PORT\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    make_answers();
    int listener = listening(atoi(argv[1])), epoll = epoll_create1(0);
    struct epoll_event wanted = {.events = EPOLLIN, .data.fd = listener}, ready[256];
    epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &wanted);
    for (;;) {
        struct timespec rest, *until = NULL;
        if (timers) {
            int64_t left = heap[0].due - now_us();
            if (left < 0) left = 0;
            rest = (struct timespec){left / 1000000, left % 1000000 * 1000};
            until = &rest;
        }
        int n = epoll_pwait2(epoll, ready, 256, until, NULL);
        for (int i = 0; i < n; i++) {
            if (ready[i].data.fd == listener) welcome(epoll, listener);
            else take(ready[i].data.fd);
        }
        for (int64_t now = now_us(); timers && heap[0].due <= now;) {
            Timer timer = pop();
            Connection *c = &connections[timer.fd];
            if (!c->is_open || c->generation != timer.generation) continue;
            answer(timer.fd);
            if (c->is_open) consume(timer.fd);
        }
    }
}
