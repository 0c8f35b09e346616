/* publish: persistent, mandatory, confirmed, with a window in flight. consume: a prefetch window, one ack a message.
 * Writes [seconds, seconds of processor time] as JSON. */
#include <amqp.h>
#include <amqp_tcp_socket.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

static void require(int good, const char *what) {
  if (!good) {
    fprintf(stderr, "%s failed\n", what);
    exit(1);
  }
}

static void require_reply(amqp_rpc_reply_t reply, const char *what) {
  require(reply.reply_type == AMQP_RESPONSE_NORMAL, what);
}

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec + time.tv_nsec / 1e9;
}

static double cpu(void) {
  struct rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_utime.tv_sec + usage.ru_stime.tv_sec + (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

/* Messages without an answer, by delivery tag: confirms come one by one or for all up to a tag, and in any order. */
static char *answered;
static uint64_t lowest = 1, open_ones = 0;

static void answer(uint64_t tag) {
  if (!answered[tag]) {
    answered[tag] = 1;
    open_ones--;
  }
}

/* Reads one confirm. One that says "not stored" ends the program. */
static void take_confirm(amqp_connection_state_t connection) {
  amqp_frame_t frame;
  require(amqp_simple_wait_frame(connection, &frame) == AMQP_STATUS_OK, "waiting for a confirm");
  require(frame.frame_type == AMQP_FRAME_METHOD && frame.payload.method.id == AMQP_BASIC_ACK_METHOD, "a confirm");
  amqp_basic_ack_t *ack = frame.payload.method.decoded;
  if (ack->multiple)
    while (lowest <= ack->delivery_tag) answer(lowest++);
  else
    answer(ack->delivery_tag);
  amqp_maybe_release_buffers(connection);
}

static void publish(amqp_connection_state_t connection, char **names, long count, long size, long window) {
  char *data = calloc(1, size);
  amqp_bytes_t body = {size, data};
  amqp_basic_properties_t properties;
  memset(&properties, 0, sizeof properties);
  properties._flags = AMQP_BASIC_DELIVERY_MODE_FLAG;
  properties.delivery_mode = 2;
  amqp_confirm_select(connection, 1);
  require_reply(amqp_get_rpc_reply(connection), "confirm.select");
  answered = calloc(1, count + 1);
  for (long sent = 0; sent < count; sent++) {
    while ((long)open_ones >= window) take_confirm(connection);
    open_ones++;
    require(amqp_basic_publish(connection, 1, amqp_cstring_bytes(names[0]), amqp_cstring_bytes(names[1]), 1, 0,
                               &properties, body) == AMQP_STATUS_OK, "basic.publish");
  }
  while (open_ones) take_confirm(connection);
  free(answered);
  free(data);
}

static void consume(amqp_connection_state_t connection, char **names, long count, long window) {
  amqp_basic_qos(connection, 1, 0, window, 0);
  require_reply(amqp_get_rpc_reply(connection), "basic.qos");
  amqp_basic_consume(connection, 1, amqp_cstring_bytes(names[2]), amqp_empty_bytes, 0, 0, 0, amqp_empty_table);
  require_reply(amqp_get_rpc_reply(connection), "basic.consume");
  for (long done = 0; done < count; done++) {
    amqp_envelope_t envelope;
    amqp_maybe_release_buffers(connection);
    require_reply(amqp_consume_message(connection, &envelope, NULL, 0), "waiting for a message");
    require(amqp_basic_ack(connection, 1, envelope.delivery_tag, 0) == AMQP_STATUS_OK, "basic.ack");
    amqp_destroy_envelope(&envelope);
  }
}

int main(int argc, char **arguments) {
  require(argc == 13, "reading the arguments");
  long count = atol(arguments[10]), size = atol(arguments[11]), window = atol(arguments[12]);
  amqp_connection_state_t connection = amqp_new_connection();
  amqp_socket_t *socket = amqp_tcp_socket_new(connection);
  require(socket != NULL && amqp_socket_open(socket, arguments[2], atoi(arguments[3])) == AMQP_STATUS_OK, "connecting");
  require_reply(amqp_login(connection, arguments[6], 0, 131072, 0, AMQP_SASL_METHOD_PLAIN, arguments[4], arguments[5]),
                "logging in");
  amqp_channel_open(connection, 1);
  require_reply(amqp_get_rpc_reply(connection), "channel.open");
  double began = now(), before = cpu();
  if (strcmp(arguments[1], "publish") == 0)
    publish(connection, arguments + 7, count, size, window);
  else
    consume(connection, arguments + 7, count, window);
  printf("[%.6f, %.6f]\n", now() - began, cpu() - before);
  fflush(stdout);
  sleep(1); /* a channel that closes takes the acks along that its quorum queue had no time for; not part of the time */
  amqp_channel_close(connection, 1, AMQP_REPLY_SUCCESS);
  amqp_connection_close(connection, AMQP_REPLY_SUCCESS);
  amqp_destroy_connection(connection);
  return 0;
}
