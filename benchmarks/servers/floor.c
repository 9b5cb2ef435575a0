/* The floor: what the system calls of a request cost when nothing is around them.  floor ping|ping-unix|connect|udp [blocking]

   One thread, one epoll, non-blocking sockets, and the same calls as a server in Python has to make: accept, recv, send,
   shutdown, close. Binds a free port of 127.0.0.1, or a Unix socket; writes the number or the path and a newline, and serves
   until it is killed.

   "ping" and "ping-unix" answer on kept connections, "connect" answers and closes, "udp" turns a DNS query into an answer. With
   "blocking" an accepted connection is waited for, and served to its end before the next: cheaper, and at the mercy of
   any client that says nothing. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define BACKLOG 4096
#define EVENTS 512

static const char PONG[] = "+PONG\r\n";
static const char PAGE[] = "HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nok\n";

static int poller, listener, keeps, mode = SOCK_NONBLOCK;

static void die(const char *what) {
    perror(what);
    exit(1);
}

static int bound(int kind) {
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof name;
    int fd = socket(AF_INET, kind | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&name, sizeof name)) die("bind");
    if (kind == SOCK_STREAM && listen(fd, BACKLOG)) die("listen");
    if (getsockname(fd, (struct sockaddr *)&name, &length)) die("getsockname");
    printf("%d\n", ntohs(name.sin_port));
    fflush(stdout);
    return fd;
}

static int bound_unix(void) {
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    const char *directory = getenv("TMPDIR");
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    snprintf(name.sun_path, sizeof name.sun_path, "%s/sockserve-bench-%d.sock", directory ? directory : "/tmp",
             (int)getpid());
    if (fd < 0 || bind(fd, (struct sockaddr *)&name, sizeof name) || listen(fd, BACKLOG)) die("bind");
    printf("%s\n", name.sun_path);
    fflush(stdout);
    return fd;
}

static void watch(int fd) {
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    if (epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event)) die("epoll_ctl");
}

/* Answers what is there to read. Returns whether the connection is still open. */
static int answered(int fd) {
    char request[1024];
    ssize_t count = recv(fd, request, sizeof request, 0);
    if (count < 0 && errno == EAGAIN) return 1;
    if (count > 0) {
        if (keeps)
            count = send(fd, PONG, sizeof PONG - 1, MSG_NOSIGNAL);
        else
            count = send(fd, PAGE, sizeof PAGE - 1, MSG_NOSIGNAL);
        if (keeps && count > 0) return 1;
    }
    shutdown(fd, SHUT_WR);
    close(fd);
    return 0;
}

static void accept_all(void) {
    for (;;) {
        int fd = accept4(listener, NULL, NULL, mode | SOCK_CLOEXEC);
        if (fd < 0) {
            if (errno == EAGAIN) return;
            if (errno == ECONNABORTED || errno == EINTR) continue;
            die("accept");
        }
        /* Its request has often come along with it. */
        if (answered(fd)) watch(fd);
    }
}

static void answer_all_datagrams(void) {
    unsigned char packet[4096];
    struct sockaddr_in name;
    socklen_t length;
    ssize_t count;
    for (;;) {
        length = sizeof name;
        count = recvfrom(listener, packet, sizeof packet, 0, (struct sockaddr *)&name, &length);
        if (count < 0) {
            if (errno == EAGAIN) return;
            if (errno == ECONNREFUSED || errno == EINTR) continue;
            die("recvfrom");
        }
        if (count < 12) continue;
        packet[2] = 0x81;
        packet[3] = 0x80;
        sendto(listener, packet, count, 0, (struct sockaddr *)&name, length);
    }
}

int main(int argc, char **argv) {
    struct epoll_event events[EVENTS];
    int count, each, is_udp, is_unix;
    if (argc != 2 && argc != 3) return 2;
    if (argc == 3) mode = 0;
    is_udp = !strcmp(argv[1], "udp");
    is_unix = !strcmp(argv[1], "ping-unix");
    keeps = is_unix || !strcmp(argv[1], "ping");
    poller = epoll_create1(EPOLL_CLOEXEC);
    if (poller < 0) die("epoll_create1");
    listener = is_unix ? bound_unix() : bound(is_udp ? SOCK_DGRAM : SOCK_STREAM);
    watch(listener);
    for (;;) {
        count = epoll_wait(poller, events, EVENTS, -1);
        if (count < 0 && errno != EINTR) die("epoll_wait");
        for (each = 0; each < count; each++) {
            if (events[each].data.fd != listener)
                answered(events[each].data.fd);
            else if (is_udp)
                answer_all_datagrams();
            else
                accept_all();
        }
    }
}
