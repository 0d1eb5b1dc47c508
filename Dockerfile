# docker build -t dedupd . && docker run -p 8080:8080 -v dedupd:/data dedupd
#
# Uploads from outside need a token: docker exec CONTAINER /dedupd token create …
FROM golang:1.26 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=
RUN CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X main.release=$VERSION" -o /out/dedupd ./cmd/dedupd
RUN install -d -m 0700 /out/data

FROM scratch
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /out/dedupd /dedupd
COPY --from=build --chown=65532:65532 /out/data /data
USER 65532:65532
ENV XDG_DATA_HOME=/data DEDUPD_LISTEN=:8080
VOLUME /data
EXPOSE 8080
STOPSIGNAL SIGTERM
# Making the index anew from a large bucket takes minutes.
HEALTHCHECK --start-period=10m CMD ["/dedupd", "ready"]
ENTRYPOINT ["/dedupd"]
CMD ["serve"]
