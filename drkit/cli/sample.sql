-- A small shop: what `drkit demo` backs up.
create table customer (
    customer_id int generated always as identity primary key,
    name text not null,
    email text not null unique,
    city text,
    since date not null
);

create table product (
    product_id int generated always as identity primary key,
    title text not null,
    price numeric(8, 2) not null check (price > 0)
);

create table purchase (
    purchase_id bigint generated always as identity primary key,
    customer_id int not null references customer,
    bought_at timestamptz not null
);

create table purchase_line (
    purchase_id bigint not null references purchase on delete cascade,
    line_number int not null,
    product_id int not null references product,
    quantity int not null check (quantity > 0),
    primary key (purchase_id, line_number)
);

create index on purchase (bought_at);
create index on purchase_line (product_id);

create view turnover as
    select date_trunc('month', p.bought_at) as month, sum(l.quantity * i.price) as amount
      from purchase p join purchase_line l using (purchase_id) join product i using (product_id)
     group by 1;

select setseed(0.42);

insert into customer (name, email, city, since)
select 'Customer ' || n, 'customer' || n || '@example.org',
       (array['Berlin', 'Kraków', 'São Paulo', '大阪', null])[1 + n % 5], date '2020-01-01' + n % 2000
  from generate_series(1, 5000) n;

insert into product (title, price)
select 'Product ' || n, (1 + random() * 99)::numeric(8, 2) from generate_series(1, 500) n;

insert into purchase (customer_id, bought_at)
select 1 + (random() * 4999)::int, now() - random() * interval '700 days' from generate_series(1, 40000);

insert into purchase_line (purchase_id, line_number, product_id, quantity)
select p, l, 1 + (random() * 499)::int, 1 + (random() * 4)::int
  from generate_series(1, 40000) p, generate_series(1, 3) l;
