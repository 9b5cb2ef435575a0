/* Loads a server on loopback with PINGs: load connect|kept PORT CLIENTS REQUESTS

   Each of CLIENTS processes blocks on one connection at a time. "connect": one request per connection, read until
   end-of-file. "kept": all its requests on one connection. REQUESTS counts those of all together.
   Exit status 0: every single answer was complete and right. */

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

static const char PING[] = "PING\r\n", PONG[] = "+PONG\r\n";
static struct sockaddr_in server;

static void die(const char *what) {
    perror(what);
    exit(1);
}

static int connected(void) {
    int on = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&server, sizeof server)) die("connect");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return fd;
}

/* until_end: the answer ends with the connection; else with its last byte. */
static void ask(int fd, int until_end) {
    char answer[64];
    size_t length = 0;
    ssize_t count;
    if (send(fd, PING, sizeof PING - 1, MSG_NOSIGNAL) != sizeof PING - 1) die("send");
    while (until_end || length < sizeof PONG - 1) {
        count = recv(fd, answer + length, sizeof answer - length, 0);
        if (count < 0) die("recv");
        if (count == 0) break;
        length += count;
    }
    if (length != sizeof PONG - 1 || memcmp(answer, PONG, length)) {
        fprintf(stderr, "wrong answer of %zu bytes\n", length);
        exit(1);
    }
}

static void be_client(int kept, long requests) {
    int fd = kept && requests > 0 ? connected() : -1;
    while (requests-- > 0) {
        if (!kept) fd = connected();
        ask(fd, !kept);
        if (!kept) close(fd);
    }
    exit(0);
}

int main(int argc, char **argv) {
    int status, failed = 0;
    long client, clients, requests;
    if (argc != 5) return 2;
    server.sin_family = AF_INET;
    server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    server.sin_port = htons(atoi(argv[2]));
    clients = atol(argv[3]);
    requests = atol(argv[4]);
    for (client = 0; client < clients; client++) {
        pid_t pid = fork();
        if (pid < 0) die("fork");
        if (pid == 0) be_client(!strcmp(argv[1], "kept"), (client + 1) * requests / clients - client * requests / clients);
    }
    while (wait(&status) > 0) failed |= status;
    return failed != 0;
}
